// Attention inside frames, all of whose positions see one another. Included once per instruction set, after linear.inl.
//
// Some rows of queries go over their head's keys and values segment by segment, and what they found so far is weighed
// anew when a segment holds a larger score: no more scores are held than rows times a segment, in the first cache. The
// order of all sums is that of positions, whatever rows are computed together.

#include <type_traits>

#include "powers.inl"
#include "turning.inl"

namespace qwench {
namespace {

// As many sums as a unit has registers for.
constexpr bool kWide = kWideLimit == INT64_MAX;
constexpr int kFrameM = kWide ? kWideTokens : kTallTokens;
constexpr int kFrameN = kWide ? kGroup / kPanel : 1;

// The largest lane; no NaN is among them.
QW_INLINE float peak(V a) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(a.v);
#else
    return largest(a);
#endif
}

QW_INLINE void keep_weights(float* to, V weights) { store(to, weights); }

// What heads of width `head_dim` at token `token` are turned by is the same for all of them.
template <class T>
QW_INLINE void turn_some(const qw_frames_arguments& a, const T* x, int64_t token, T* output) {
    const int64_t half = a.head_dim / 2;
    turn_head(x, output, a.head_dim, half, a.cosine + token * half, a.sine + token * half);
}

// Rows of keys as columns of a tile, turned where they are to be: a step of the depth, fp32 or a pair of BF16, is one word.
template <class T>
void pack_keys(const FrameTask& task, const T* rows, int64_t token, int64_t count, char* to) {
    const qw_frames_arguments& a = task.arguments;
    const int64_t words = a.head_dim / task.shape.step();
    alignas(64) T near[kLanes][QW_ATTENTION_WIDTH];
    const char* starts[kLanes];
    for (int64_t first = 0; first < kGroup; first += kLanes, to += kLanes * kStepBytes) {
        for (int64_t r = 0; r < kLanes; ++r) {
            if (first + r < count) {
                turn_some(a, rows + (first + r) * a.stride, token + first + r, near[r]);
            } else {
                std::memset(near[r], 0, static_cast<size_t>(a.head_dim) * sizeof(T));
            }
        }
        for (int64_t word = 0; word < words; word += kLanes) {
            char* target = to + word * kGroup * kStepBytes;
            for (int64_t r = 0; r < kLanes; ++r) starts[r] = reinterpret_cast<const char*>(near[r]) + word * kStepBytes;
            if (words - word >= kLanes) {
                transpose_words(starts, reinterpret_cast<uint32_t*>(target), kGroup);
                continue;
            }
            for (int64_t w = 0; w < words - word; ++w) {
                for (int64_t r = 0; r < kLanes; ++r) {
                    std::memcpy(target + (w * kGroup + r) * kStepBytes, starts[r] + w * kStepBytes, kStepBytes);
                }
            }
        }
    }
}

template <class T>
void pack_values(const T* rows, int64_t stride, int64_t count, const FrameShape& shape, T* to) {
    for (int64_t row = 0; row < count; ++row) {
        std::memcpy(to + row * shape.columns, rows + row * stride, static_cast<size_t>(shape.head_dim) * sizeof(T));
    }
}

// Numbers of two rows in turns.
void pack_pair(const bf16* __restrict one, const bf16* __restrict other, int64_t width, uint32_t* __restrict to) {
    for (int64_t i = 0; i < width; ++i) to[i] = one[i].bits | static_cast<uint32_t>(other[i].bits) << 16;
}

// Two rows side by side; beside the last of an odd number lie zeros.
void pack_values(const bf16* rows, int64_t stride, int64_t count, const FrameShape& shape, uint32_t* to) {
    const int64_t width = shape.head_dim;
    for (int64_t row = 0; row < count; row += 2, to += shape.columns) {
        const bf16* one = rows + row * stride;
        if (row + 1 < count) {
            pack_pair(one, one + stride, width, to);
        } else {
            for (int64_t i = 0; i < width; ++i) to[i] = one[i].bits;
        }
    }
}

// The keys and values of one tile, which is the piece.
template <class T>
void pack_tile(const FrameTask& task) {
    const qw_frames_arguments& a = task.arguments;
    const FrameShape& shape = task.shape;
    const FramePiece& piece = task.piece;
    const int64_t tile = piece.first / kGroup, token = piece.start + piece.first;
    const int64_t place = token * a.stride + piece.head * a.head_dim;
    pack_keys(task, static_cast<const T*>(a.key) + place, token, piece.count, piece.keys + tile * shape.key_tile_bytes());
    char* values = piece.values + tile * shape.value_tile_bytes();
    if (piece.count < kGroup || shape.columns > a.head_dim) {
        std::memset(values, 0, static_cast<size_t>(shape.value_tile_bytes()));
    }
    using Word = std::conditional_t<std::is_same_v<T, bf16>, uint32_t, T>;
    pack_values(static_cast<const T*>(a.value) + place, a.stride, piece.count, shape, reinterpret_cast<Word*>(values));
}

// T: the type of queries and outputs; Step: of both products.
template <class T, class Step>
struct Frame {
    using Input = typename Step::Input;
    static constexpr bool kShort = std::is_same_v<T, bf16>;
    static constexpr int64_t kStep = Step::kDepth;

    const FrameTask& task;
    const qw_frames_arguments& a;
    const FrameShape& shape;
    const FramePiece& piece;
    Layout layout;
    FrameScratch scratch;
    Input* queries;
    Input* weights;

    explicit Frame(const FrameTask& t)
        : task(t), a(t.arguments), shape(t.shape), piece(t.piece), layout(t.scratch), scratch(layout, shape),
          queries(static_cast<Input*>(scratch.queries)), weights(static_cast<Input*>(scratch.weights)) {}

    int64_t place(int64_t row, int64_t stride) const {
        return (piece.start + piece.first + row) * stride + piece.head * a.head_dim;
    }

    // Rows behind the last are zeros, up to whole blocks.
    void load_queries() const {
        for (int64_t row = 0; row < kFrameTaskRows; ++row) {
            Input* to = queries + row * a.head_dim;
            if (row < piece.count) {
                alignas(64) T turned[QW_ATTENTION_WIDTH];
                const T* from = static_cast<const T*>(a.query) + place(row, a.stride);
                turn_some(a, from, piece.start + piece.first + row, turned);
                for (int64_t i = 0; i < a.head_dim; i += kLanes) {
                    store_some(to + i, load_some(turned + i, a.head_dim - i), a.head_dim - i);
                }
            } else {
                std::memset(to, 0, static_cast<size_t>(a.head_dim) * sizeof(Input));
            }
            scratch.maxima[row] = -__builtin_huge_valf();
        }
        std::memset(scratch.outputs, 0, static_cast<size_t>(kFrameTaskRows * shape.columns) * sizeof(float));
        std::memset(scratch.totals, 0, static_cast<size_t>(kFrameTaskRows * kLanes) * sizeof(float));
    }

    template <int N>
    QW_INLINE static void multiply(const Input* x, int64_t stride, const char* packed, int64_t step_bytes, int64_t steps,
                                   V (&sums)[kFrameM][N]) {
        for (int64_t step = 0; step < steps; ++step) {
            Step::template step<kFrameM, N>(x, stride, packed, sums);
            x += kStep;
            packed += step_bytes;
        }
    }

    // Scores of kFrameM rows with the 16 N positions from `panel` of a tile on.
    template <int N>
    void score(const Input* x, const char* tile, int64_t panel, float* to) const {
        V sums[kFrameM][N];
        for (auto& row : sums) {
            for (V& each : row) each = zero();
        }
        const char* keys = tile + panel * kPanel * kStepBytes;
        multiply<N>(x, a.head_dim, keys, kGroup * kStepBytes, a.head_dim / kStep, sums);
        for (int m = 0; m < kFrameM; ++m) {
            for (int n = 0; n < N; ++n) store(to + m * kFrameSegment + (panel + n) * kPanel, sums[m][n]);
        }
    }

    // kFrameM rows of outputs <- outputs * factor + weights . values, in 16 N columns.
    template <int N>
    void add_values(int64_t row, const Input* x, const float* factor, const char* values, int64_t panel,
                    int64_t steps) const {
        float* to = scratch.outputs + row * shape.columns + panel * kPanel;
        V sums[kFrameM][N];
        for (int m = 0; m < kFrameM; ++m) {
            for (int n = 0; n < N; ++n) sums[m][n] = mul(load(to + m * shape.columns + n * kPanel), all(factor[m]));
        }
        multiply<N>(x, kFrameSegment, values + panel * kPanel * kStepBytes, shape.columns * kStepBytes, steps, sums);
        for (int m = 0; m < kFrameM; ++m) {
            for (int n = 0; n < N; ++n) store(to + m * shape.columns + n * kPanel, sums[m][n]);
        }
    }

    // The first `count` scores of row `row` + r, which is held as r, become weights, zeros behind them up to whole vectors.
    void weigh(int64_t row, int64_t r, int64_t count) const {
        const float* from = scratch.scores + r * kFrameSegment;
        float* total = scratch.totals + (row + r) * kLanes;
        Input* to = weights + r * kFrameSegment;
        const V scale = all(shape.scale), subtracted = all(-scratch.maxima[row + r]);
        V sums = mul(load(total), all(scratch.factors[r]));
        const auto weight = [&](int64_t i) { return power_of_two<kShort>(fma(load(from + i), scale, subtracted)); };
        const auto keep = [&](int64_t i, V each) {
            keep_weights(to + i, each);
            sums = add(sums, each);
        };
        const int64_t whole_vectors = count / kLanes * kLanes;
        for (int64_t i = 0; i < whole_vectors; i += kLanes) keep(i, weight(i));
        if (whole_vectors < count) keep(whole_vectors, first_lanes(weight(whole_vectors), zero(), count - whole_vectors));
        store(total, sums);
    }

    // The largest of all scores so far, and what the weights found with a smaller one are to be multiplied by.
    void find_maxima(int64_t row, int64_t count) const {
        float before[kFrameRows];
        std::memcpy(before, scratch.maxima + row, sizeof before);
        for (int64_t r = 0; r < kFrameRows; ++r) {
            const V least_of_all = all(-__builtin_huge_valf());
            V seen = least_of_all;
            const float* each = scratch.scores + r * kFrameSegment;
            const int64_t whole_vectors = count / kLanes * kLanes, left = count - whole_vectors;
            for (int64_t i = 0; i < whole_vectors; i += kLanes) seen = most(load(each + i), seen);
            if (left > 0) seen = most(first_lanes(load(each + whole_vectors), least_of_all, left), seen);
            const float found = peak(seen) * shape.scale;
            scratch.maxima[row + r] = found > before[r] ? found : before[r];  // no branch: nobody could foretell it
        }
        for (int64_t r = 0; r < kFrameRows; r += kLanes) {
            const int64_t n = kFrameRows - r;
            const V grown = sub(load_some(before + r, n), load_some(scratch.maxima + row + r, n));
            store(scratch.factors + r, power_of_two<false>(most(all(-150.0f), grown)));
        }
    }

    // Rows [row, row + kFrameRows) over a segment of `count` positions, the first of which is `first`.
    void attend_rows(int64_t row, int64_t first, int64_t count) const {
        const int64_t steps = divide_up(count, kStep);
        const Input* x = queries + row * a.head_dim;
        for (int64_t tile = 0; tile * kGroup < count; ++tile) {
            const char* keys = piece.keys + (first / kGroup + tile) * shape.key_tile_bytes();
            const int64_t left = divide_up(count - tile * kGroup, kPanel);
            const int64_t panels = left < kGroup / kPanel ? left : kGroup / kPanel;
            for (int64_t m = 0; m < kFrameRows; m += kFrameM) {
                float* to = scratch.scores + m * kFrameSegment + tile * kGroup;
                int64_t panel = 0;
                for (; panel + kFrameN <= panels; panel += kFrameN) score<kFrameN>(x + m * a.head_dim, keys, panel, to);
                for (; panel < panels; ++panel) score<1>(x + m * a.head_dim, keys, panel, to);
            }
        }
        find_maxima(row, count);
        for (int64_t r = 0; r < kFrameRows; ++r) weigh(row, r, count);
        const char* values = piece.values + first / kStep * shape.columns * kStepBytes;
        const int64_t panels = shape.columns / kPanel;
        for (int64_t m = 0; m < kFrameRows; m += kFrameM) {
            const Input* weighed = weights + m * kFrameSegment;
            const float* factors = scratch.factors + m;
            int64_t panel = 0;
            for (; panel + kFrameN <= panels; panel += kFrameN) {
                add_values<kFrameN>(row + m, weighed, factors, values, panel, steps);
            }
            for (; panel < panels; ++panel) add_values<1>(row + m, weighed, factors, values, panel, steps);
        }
    }

    void write_outputs() const {
        for (int64_t row = 0; row < piece.count; ++row) {
            T* to = static_cast<T*>(a.output) + place(row, a.output_stride);
            const V inverse = all(1.0f / sum(load(scratch.totals + row * kLanes)));
            for (int64_t i = 0; i < a.head_dim; i += kLanes) {
                store_some(to + i, mul(load(scratch.outputs + row * shape.columns + i), inverse), a.head_dim - i);
            }
        }
    }
};

template <class T, class Step>
void attend_frame(const FrameTask& task) {
    static_assert(kFrameRows % kFrameM == 0, "rows come in whole blocks");
    const Frame<T, Step> frame(task);
    frame.load_queries();
    for (int64_t first = 0; first < task.piece.length; first += kFrameSegment) {
        const int64_t left = task.piece.length - first, count = left < kFrameSegment ? left : kFrameSegment;
        for (int64_t row = 0; row < task.piece.count; row += kFrameRows) frame.attend_rows(row, first, count);
    }
    frame.write_outputs();
}

template <class T, class Step>
FrameKernels frame_kernels() {
    return {pack_tile<T>, attend_frame<T, Step>};
}

}  // namespace
}  // namespace qwench
