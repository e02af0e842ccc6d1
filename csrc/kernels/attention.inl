// Causal attention of some query tokens over segments of their paged context. Included once per instruction set, after
// simd.h.
//
// A segment's keys and values are brought into the layout of packed weights, so both products are the linear layer's
// kernels, with whatever the instruction set has for them: a score is one chain of additions over the head's width, an
// output one over the segment's positions. Segments lie at fixed positions, each is weighed by its own maximum, and they
// are folded together in their order: a token gets the same bits alone and in any company.

namespace qwench {
namespace {

constexpr int64_t kWordTile = 16;  // rows, and four-byte words, that are transposed at once

// Inputs of a linear kernel: rows of `depth`, or tiles of 16 rows by 32 of depth.
template <class E>
struct InputRows {
    E* elements;
    int64_t depth;
    bool tiled;

    QW_INLINE E* row(int64_t r) const {
        if (!tiled) return elements + r * depth;
        return elements + r / kWordTile * kWordTile * depth + r % kWordTile * kDepthTile;
    }
    // From the first 32 elements of a row to its next 32.
    QW_INLINE int64_t run() const { return tiled ? kWordTile * kDepthTile : kDepthTile; }
};

// A head's keys or values at the positions of a segment.
template <class T>
struct PagedRows {
    const T* cache;          // [tokens, kv_heads, head_dim], at the head
    const int64_t* offsets;  // elements from there, for each position of the segment
    int64_t count, width;    // positions, and elements of one

    QW_INLINE const T* at(int64_t i) const { return cache + offsets[i]; }

    // Asks memory for the byte `at_byte` of positions [first, first + kWordTile), as far as they exist.
    template <int kCache>
    QW_INLINE void ask(int64_t first, int64_t at_byte) const {
        const int64_t last = first + kWordTile < count ? first + kWordTile : count;
        for (int64_t i = first; i < last; ++i) {
            __builtin_prefetch(reinterpret_cast<const char*>(at(i)) + at_byte, 0, kCache);
        }
    }
};

// Sixteen positions' keys as a panel of outputs, word after word of the depth. What is read next, and their values, are
// on their way meanwhile.
template <class T>
void pack_key_panel(const PagedRows<T>& keys, const PagedRows<T>& values, int64_t first, int64_t words, uint32_t* panel) {
    const int64_t row_bytes = keys.width * static_cast<int64_t>(sizeof(T));
    const int64_t rows = keys.count - first < kWordTile ? keys.count - first : kWordTile;
    for (int64_t word = 0; word < words; word += kWordTile) {
        const int64_t left = row_bytes - word * 4;
        if (left > 0) {
            keys.template ask<3>(first + kWordTile, word * 4);
            values.template ask<2>(first, word * 4);
        }
        const char* from[kWordTile];
        alignas(64) char padded[kWordTile][64];
        if (rows == kWordTile && left >= 64) {
            for (int64_t r = 0; r < kWordTile; ++r) from[r] = reinterpret_cast<const char*>(keys.at(first + r)) + word * 4;
        } else {  // zeros behind the last position and behind the end of the depth
            std::memset(padded, 0, sizeof padded);
            for (int64_t r = 0; r < kWordTile; ++r) {
                from[r] = padded[r];
                if (r >= rows || left <= 0) continue;
                const char* key = reinterpret_cast<const char*>(keys.at(first + r)) + word * 4;
                std::memcpy(padded[r], key, static_cast<size_t>(left < 64 ? left : 64));
            }
        }
        const int64_t tile = words - word < kWordTile ? words - word : kWordTile;
        if (tile == kWordTile) {
            transpose_words(from, panel + word * kGroup, kGroup);
        } else {
            uint32_t whole_tile[kWordTile * kWordTile];
            transpose_words(from, whole_tile, kWordTile);
            for (int64_t w = 0; w < tile; ++w) {
                std::memcpy(panel + (word + w) * kGroup, whole_tile + w * kWordTile, kWordTile * 4);
            }
        }
    }
}

// Keys as packed weights: outputs are positions, depth is the head's width.
template <class T>
void pack_keys(const PagedRows<T>& keys, const PagedRows<T>& values, char* packed) {
    constexpr bool kBf16 = std::is_same_v<T, bf16>;
    const int64_t words = num_steps(kBf16, keys.width);
    for (int64_t first = 0; first < round_up(keys.count, kGroup); first += kWordTile) {
        uint32_t* group = reinterpret_cast<uint32_t*>(packed + group_offset(kBf16, keys.width, first / kGroup));
        if (first < keys.count) {
            pack_key_panel(keys, values, first, words, group + first % kGroup);
        } else {
            for (int64_t w = 0; w < words; ++w) std::memset(group + w * kGroup + first % kGroup, 0, kWordTile * 4);
        }
    }
}

// Values as packed weights: outputs are the head's columns, depth is positions, `depth` of them.
template <class T>
void pack_values(const PagedRows<T>& values, int64_t depth, char* packed) {
    constexpr bool kBf16 = std::is_same_v<T, bf16>;
    constexpr int64_t kEach = kBf16 ? 2 : 1;  // positions of one step
    for (int64_t step = 0; step * kEach < depth; ++step) {
        T rows[kEach][kAttentionWidth];
        const T* from[kEach];
        for (int64_t i = 0; i < kEach; ++i) {
            const int64_t position = step * kEach + i;
            from[i] = position < values.count ? values.at(position) : rows[i];
            if (position < values.count && values.width % kPanel == 0) continue;
            std::memset(rows[i], 0, sizeof rows[i]);
            if (position < values.count) std::memcpy(rows[i], from[i], static_cast<size_t>(values.width) * sizeof(T));
            from[i] = rows[i];
        }
        for (int64_t column = 0; column < values.width; column += kPanel) {
            const int64_t group = column / kGroup;
            const int64_t step_bytes = panels_of(values.width, group) * kPanel * kStepBytes;
            char* to = packed + group_offset(kBf16, kAttentionSegment, group) + step * step_bytes + column % kGroup * kStepBytes;
            if constexpr (kBf16) {
                pair_up(from[0] + column, from[1] + column, to);
            } else {
                store(reinterpret_cast<float*>(to), load(from[0] + column));
            }
        }
    }
}

// weights <- e^(scale * scores - their maximum) for `count` scores, zeros up to `depth`; the maximum and the sum.
template <class E>
void weigh(const float* scores, int64_t count, int64_t depth, float scale, E* weights, int64_t run, float& maximum,
           float& total) {
    const V factor = all(scale), least_of_all = all(-__builtin_huge_valf());
    V seen = least_of_all;
    for (int64_t i = 0; i < count; i += kLanes) {
        const V each = load(scores + i);
        seen = most(count - i < kLanes ? first_lanes(each, least_of_all, count - i) : each, seen);
    }
    maximum = largest(seen) * scale;
    const V subtracted = all(-maximum);
    V sums = zero();
    for (int64_t i = 0; i < depth; i += kLanes) {
        E* to = weights + i / kDepthTile * run + i % kDepthTile;
        V each = zero();
        if (i < count) {
            each = exponential(fma(load(scores + i), factor, subtracted));
            if (count - i < kLanes) each = first_lanes(each, zero(), count - i);
        }
        store(to, each);
        sums = add(sums, load(to));  // as they were rounded
    }
    total = sum(sums);
}

// One segment's result joins what was found in the segments before it.
QW_INLINE void fold(const float* output, float maximum, float total, int64_t width, AttentionPartial& into) {
    const float largest_seen = maximum > into.maximum ? maximum : into.maximum;
    const V old_factor = exponential(all(into.maximum - largest_seen)), factor = exponential(all(maximum - largest_seen));
    for (int64_t i = 0; i < width; i += kLanes) {
        store(into.output + i, fma(load(output + i), factor, mul(load(into.output + i), old_factor)));
    }
    float totals[kLanes];
    store(totals, fma(all(total), factor, mul(all(into.total), old_factor)));
    into.maximum = largest_seen;
    into.total = totals[0];
}

template <class T>
void finish(const AttentionPartial& partial, int64_t width, T* output) {
    for (int64_t i = 0; i < width; i += kLanes) {
        store_some(output + i, div(load(partial.output + i), all(partial.total)), width - i);
    }
}

// T: the cache's type, E: that of the linear kernel's inputs.
template <class T, class E>
struct Attention {
    static constexpr bool kBf16 = std::is_same_v<T, bf16>;

    const AttentionTask& task;
    const qw_attention_arguments& a;
    const AttentionScratch& scratch;
    LinearKernel kernel;
    int64_t group, token, past;  // heads of a key head; the row's first token; positions before it
    InputRows<E> queries;

    explicit Attention(const AttentionTask& t, LinearKernel linear, bool tiled)
        : task(t), a(*t.arguments), scratch(t.scratch), kernel(linear), group(a.query_heads / a.kv_heads),
          token(a.starts[t.row]), past(a.contexts[t.row] - (a.starts[t.row + 1] - token)),
          queries{static_cast<E*>(scratch.queries), padded_depth(kBf16, a.head_dim), tiled} {}

    int64_t rows() const { return (task.last_token - task.first_token) * group; }
    // Positions that the block's row sees.
    int64_t seen(int64_t row) const { return past + task.first_token + row / group + 1; }

    void load_queries() const {
        for (int64_t row = 0; row < rows(); ++row) {
            const int64_t head = task.kv_head * group + row % group;
            const int64_t place = (token + task.first_token + row / group) * a.query_stride + head * a.head_dim;
            const T* from = static_cast<const T*>(a.query) + place;
            E* to = queries.row(row);
            for (int64_t i = 0; i < queries.depth; i += kLanes) {
                const int64_t left = a.head_dim - i;
                const V each = left > 0 ? load_some(from + i, left) : zero();
                store_some(to + i / kDepthTile * queries.run() + i % kDepthTile, each, queries.depth - i);
            }
        }
    }

    // y [count, out] = inputs from row `first` on, times the first `groups` groups of packed [out, in].
    void multiply(const InputRows<E>& inputs, int64_t first, int64_t count, const qw_weight& weight, int64_t groups,
                  float* y, int64_t y_stride) const {
        qw_linear_arguments l = {};
        l.weight = &weight;
        l.tokens = count;
        l.type = QW_F32;
        l.y = y;
        l.y_stride = y_stride;
        const LinearJob job = {&l, inputs.elements + first * inputs.depth, inputs.tiled ? 0 : inputs.depth};
        for (int64_t group_of_outputs = 0; group_of_outputs < groups; ++group_of_outputs) {
            kernel(job, group_of_outputs, 0, count);
        }
    }

    // Rows [first, first + count) over one segment that begins at `start`; the segment is packed.
    void attend_rows(int64_t first, int64_t count, int64_t start) const {
        const int64_t last_seen = seen(first + count - 1) - start;
        const int64_t positions = last_seen < kAttentionSegment ? last_seen : kAttentionSegment;
        qw_weight_type type = {};
        type.element = a.type;
        const qw_weight keys = {&type, scratch.keys, kAttentionSegment, a.head_dim};
        multiply(queries, first, count, keys, num_groups(positions), scratch.scores, kAttentionSegment);
        const int64_t depth = round_up(positions, kDepthTile);
        const InputRows<E> weights = {static_cast<E*>(scratch.weights), depth, queries.tiled};
        float maxima[kAttentionRows], totals[kAttentionRows];
        for (int64_t row = 0; row < count; ++row) {
            int64_t sees = seen(first + row) - start;
            sees = sees < 0 ? 0 : sees < positions ? sees : positions;
            weigh(scratch.scores + row * kAttentionSegment, sees, depth, a.scale, weights.row(row), weights.run(),
                  maxima[row], totals[row]);
        }
        for (int64_t column = 0; column < a.head_dim; column += kGroup) {
            const char* packed = static_cast<const char*>(scratch.values);
            packed += group_offset(kBf16, kAttentionSegment, column / kGroup);
            const int64_t columns = a.head_dim - column < kGroup ? a.head_dim - column : kGroup;
            const qw_weight values = {&type, packed, columns, depth};
            multiply(weights, 0, count, values, 1, scratch.products + column, kAttentionWidth);
        }
        for (int64_t row = 0; row < count; ++row) {
            if (seen(first + row) <= start) continue;
            const float* output = scratch.products + row * kAttentionWidth;
            AttentionPartial& into = scratch.partials[first + row];
            if (start > task.first_segment * kAttentionSegment) {
                fold(output, maxima[row], totals[row], a.head_dim, into);
            } else {
                into.maximum = maxima[row];
                into.total = totals[row];
                std::memcpy(into.output, output, sizeof into.output);
            }
        }
    }

    void attend_segment(int64_t segment) const {
        const int64_t start = segment * kAttentionSegment;
        const int64_t left = seen(rows() - 1) - start, count = left < kAttentionSegment ? left : kAttentionSegment;
        int64_t offsets[kAttentionSegment];
        const int64_t* pages = a.page_table + task.row * a.page_stride;
        for (int64_t i = 0; i < count; ++i) {
            const int64_t position = start + i;
            const int64_t slot = pages[position / a.page_size] * a.page_size + position % a.page_size;
            offsets[i] = slot * a.kv_heads * a.head_dim;
        }
        const int64_t head = task.kv_head * a.head_dim;
        const PagedRows<T> keys = {static_cast<const T*>(a.keys) + head, offsets, count, a.head_dim};
        const PagedRows<T> values = {static_cast<const T*>(a.values) + head, offsets, count, a.head_dim};
        pack_keys(keys, values, static_cast<char*>(scratch.keys));
        pack_values(values, round_up(count, kDepthTile), static_cast<char*>(scratch.values));
        for (int64_t row = 0; row < rows(); row += kAttentionRows) {
            const int64_t some = rows() - row < kAttentionRows ? rows() - row : kAttentionRows;
            if (seen(row + some - 1) > start) attend_rows(row, some, start);
        }
    }

    void write_outputs() const {
        for (int64_t row = 0; row < rows(); ++row) {
            const int64_t head = task.kv_head * group + row % group;
            const int64_t place = (token + task.first_token + row / group) * a.output_stride + head * a.head_dim;
            finish(scratch.partials[row], a.head_dim, static_cast<T*>(a.output) + place);
        }
    }
};

template <class T, class E>
void attend_as(const AttentionTask& task, LinearKernel linear, bool tiled) {
    const Attention<T, E> attention(task, linear, tiled);
    attention.load_queries();
    for (int64_t segment = task.first_segment; segment < task.last_segment; ++segment) {
        attention.attend_segment(segment);
    }
    if (task.finishes) attention.write_outputs();
}

void attend(const AttentionTask& task) {
    const Kernels& kernels = *task.kernels;
    if (task.arguments->type != QW_BF16) {
        attend_as<float, float>(task, kernels.linear_f32, false);
    } else if (kernels.linear_bf16_pairs == nullptr) {
        attend_as<bf16, float>(task, kernels.linear_bf16, false);
    } else {
        attend_as<bf16, bf16>(task, kernels.linear_bf16_pairs, kernels.pair_inputs == Inputs::tiles);
    }
}

// Partials of one query head, `stride` apart, segment after segment: the first becomes the result.
void merge_attention(const qw_attention_arguments& a, AttentionPartial* partials, int64_t segments, int64_t stride,
                     int64_t place) {
    for (int64_t segment = 1; segment < segments; ++segment) {
        const AttentionPartial& next = partials[segment * stride];
        fold(next.output, next.maximum, next.total, a.head_dim, *partials);
    }
    if (a.type == QW_BF16) {
        finish(*partials, a.head_dim, static_cast<bf16*>(a.output) + place);
    } else {
        finish(*partials, a.head_dim, static_cast<float*>(a.output) + place);
    }
}

}  // namespace
}  // namespace qwench
