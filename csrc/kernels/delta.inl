// The tokens of one sequence through one key head of a Gated DeltaNet mixer, with the value heads that read it.
// Included once per instruction set, after simd.h.
//
// A prompt goes through the same steps as a single token, in the same order, so any cut of a sequence gives the same
// bits. It is fast because a few columns of the state stay in the first cache over a block of tokens: the chunked form
// of the rule would spend as many multiplications on its triangular systems as it saves on the state.

namespace qwench {
namespace {

constexpr int64_t kBlockTokens = 32;
constexpr int64_t kUsualTaps = 4;

// A block of tokens at one head, as fp32.
struct HeadBlock {
    alignas(64) float query[kBlockTokens][QW_DELTA_WIDTH];
    alignas(64) float key[kBlockTokens][QW_DELTA_WIDTH];
    alignas(64) float value[kBlockTokens][QW_DELTA_WIDTH];
    alignas(64) float output[kBlockTokens][QW_DELTA_WIDTH];
    float decay[kBlockTokens];  // what the state is multiplied by
    float beta[kBlockTokens];
};

// One sequence's inputs to the convolution: those of this call, and the window of those before it.
template <class T>
struct Channels {
    const T* inputs;   // [length, channels] before the convolution
    T* window;         // [taps - 1, channels], newest last
    int64_t length, channels, taps;

    // The input of token `token`, which may be negative: then it is one of the window.
    QW_INLINE const T* at(int64_t token) const {
        return token >= 0 ? inputs + token * channels : window + (taps - 1 + token) * channels;
    }
};

template <class T>
Channels<T> channels_of(const qw_delta_arguments& a, int64_t row) {
    const int64_t channels = 2 * a.key_heads * a.key_dim + a.value_heads * a.value_dim;
    return {
        static_cast<const T*>(a.mixed) + a.starts[row] * channels,
        static_cast<T*>(a.conv_states) + a.slots[row] * (a.taps - 1) * channels,
        a.starts[row + 1] - a.starts[row],
        channels,
        a.taps,
    };
}

// The convolution's sum at channels [channel, channel + n) over kTaps inputs, or over all taps where it is 0.
template <int kTaps, class T>
QW_INLINE V sum_taps(const Channels<T>& in, const float* conv, int64_t oldest, int64_t channel, int64_t n) {
    V total = zero();
#pragma GCC unroll 4
    for (int64_t tap = 0; tap < (kTaps > 0 ? kTaps : in.taps); ++tap) {
        const T* input = in.at(oldest + tap) + channel;
        total = fma(load_some(input, n), load_some(conv + tap * in.channels + channel, n), total);
    }
    return total;
}

// Tokens [begin, begin + count) of channels [first, first + width), convolved and through silu. Token after token,
// because tokens lie far apart: those of one vector of channels would push one another out of the cache.
template <class T>
void convolve(const Channels<T>& in, const float* conv, int64_t begin, int64_t count, int64_t first, int64_t width,
              float (*output)[QW_DELTA_WIDTH]) {
    for (int64_t token = 0; token < count; ++token) {
        const int64_t oldest = begin + token - (in.taps - 1);
        for (int64_t i = 0; i < width; i += kLanes) {
            const int64_t n = width - i;
            const bool usual = in.taps == kUsualTaps && n >= kLanes;
            const V total = usual ? sum_taps<kUsualTaps>(in, conv, oldest, first + i, kLanes)
                                  : sum_taps<0>(in, conv, oldest, first + i, n);
            store_some(output[token] + i, rounded<T>(silu(total)), n);  // of the activations' type
        }
    }
}

// Writes the window of channels [first, first + width) as it is behind `tokens` tokens of this call. `window` may be the
// one it was before: its columns move towards the older.
template <class T>
void write_window(const Channels<T>& in, int64_t tokens, int64_t first, int64_t width, T* window) {
    for (int64_t column = 0; column + 1 < in.taps; ++column) {
        const T* from = in.at(tokens - (in.taps - 1) + column) + first;
        std::memmove(window + column * in.channels + first, from, static_cast<size_t>(width) * sizeof(T));
    }
}

// x <- x * factor / |x|, the epsilon inside the root.
void normalise(float* x, int64_t width, float factor) {
    V squares = zero();
    for (int64_t i = 0; i < width; i += kLanes) {
        const V value = load_some(x + i, width - i);
        squares = fma(value, value, squares);
    }
    const V scale = all(factor / std::sqrt(sum(squares) + 1e-6f));
    for (int64_t i = 0; i < width; i += kLanes) {
        store_some(x + i, mul(load_some(x + i, width - i), scale), width - i);
    }
}

// Two rows of a state at a time have sums of their own, because one chain of additions would wait for itself.
template <int N>
struct Sums {
    V even[N], odd[N];

    QW_INLINE void clear() {
        for (int n = 0; n < N; ++n) even[n] = odd[n] = zero();
    }
};

// sums of S^T k
template <int N>
QW_INLINE void read_columns(const float* key, int64_t key_dim, const float* state, int64_t stride, Sums<N>& sums) {
    sums.clear();
    int64_t i = 0;
    for (; i + 1 < key_dim; i += 2) {
        const V first = all(key[i]), second = all(key[i + 1]);
        const float* row = state + i * stride;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            sums.even[n] = fma(first, load(row + n * kLanes), sums.even[n]);
            sums.odd[n] = fma(second, load(row + stride + n * kLanes), sums.odd[n]);
        }
    }
    for (int n = 0; i < key_dim && n < N; ++n) {
        sums.even[n] = fma(all(key[i]), load(state + i * stride + n * kLanes), sums.even[n]);
    }
}

// What one row of a state is multiplied with in one step.
struct RowFactors {
    V key, query, next;
};

// S <- decay S + k d^T in one row, with sums of S^T q and, where a token follows, of S^T with its key.
template <int N, bool kFollowed>
QW_INLINE void update_row(float* row, const RowFactors& by, V decay, const V (&update)[N], V (&result)[N], V (&read)[N]) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        const V fresh = fma(by.key, update[n], mul(decay, load(row + n * kLanes)));
        store(row + n * kLanes, fresh);
        result[n] = fma(by.query, fresh, result[n]);
        if constexpr (kFollowed) read[n] = fma(by.next, fresh, read[n]);
    }
}

// One token through N vectors of columns; `read` holds sums of S^T with its key, then of the next token's.
template <int N, bool kFollowed>
QW_INLINE void step_columns(HeadBlock& block, int64_t token, int64_t key_dim, float* state, int64_t stride,
                            int64_t column, Sums<N>& read) {
    const float* keys = block.key[token];
    const float* queries = block.query[token];
    const float* next = kFollowed ? block.key[token + 1] : keys;
    const V decay = all(block.decay[token]), beta = all(block.beta[token]);
    V update[N];
    Sums<N> result;
    for (int n = 0; n < N; ++n) {
        const V known = mul(decay, add(read.even[n], read.odd[n]));
        update[n] = mul(sub(load(block.value[token] + column + n * kLanes), known), beta);
    }
    result.clear();
    read.clear();
    int64_t i = 0;
    for (; i + 1 < key_dim; i += 2) {
        float* row = state + i * stride;
        const RowFactors first = {all(keys[i]), all(queries[i]), all(next[i])};
        const RowFactors second = {all(keys[i + 1]), all(queries[i + 1]), all(next[i + 1])};
        update_row<N, kFollowed>(row, first, decay, update, result.even, read.even);
        update_row<N, kFollowed>(row + stride, second, decay, update, result.odd, read.odd);
    }
    if (i < key_dim) {
        const RowFactors last = {all(keys[i]), all(queries[i]), all(next[i])};
        update_row<N, kFollowed>(state + i * stride, last, decay, update, result.even, read.even);
    }
    for (int n = 0; n < N; ++n) {
        store(block.output[token] + column + n * kLanes, add(result.even[n], result.odd[n]));
    }
}

// S <- decay S;  d = beta (v - S^T k);  S <- S + k d^T;  output = S^T q   for every token, in N vectors of columns. The
// state passes by once a token: what the next token reads is summed while it is written.
template <int N>
void update_columns(HeadBlock& block, int64_t count, int64_t key_dim, float* state, int64_t stride, int64_t column) {
    Sums<N> read;
    read_columns(block.key[0], key_dim, state, stride, read);
    for (int64_t token = 0; token + 1 < count; ++token) {
        step_columns<N, true>(block, token, key_dim, state, stride, column, read);
    }
    step_columns<N, false>(block, count - 1, key_dim, state, stride, column, read);
}

// kStateVectors is the including unit's: how many vectors of columns it has registers for. Many tokens work on a copy of
// their columns, which lies together: rows that are far apart would push one another out of the first cache.
void update_state(HeadBlock& block, int64_t count, int64_t key_dim, int64_t value_dim, float* state) {
    constexpr int64_t kWidth = kStateVectors * kLanes;
    for (int64_t column = 0; column < value_dim; column += kWidth) {
        const int64_t width = value_dim - column < kWidth ? value_dim - column : kWidth;
        if (count == 1 && width == kWidth) {
            update_columns<kStateVectors>(block, count, key_dim, state + column, value_dim, column);
            continue;
        }
        alignas(64) float columns[QW_DELTA_WIDTH * kWidth];
        for (int64_t i = 0; i < key_dim; ++i) {
            for (int64_t n = 0; n < kWidth; n += kLanes) {
                const int64_t left = width - n;
                store(columns + i * kWidth + n, left > 0 ? load_some(state + i * value_dim + column + n, left) : zero());
            }
        }
        update_columns<kStateVectors>(block, count, key_dim, columns, kWidth, column);
        for (int64_t i = 0; i < key_dim; ++i) {
            for (int64_t n = 0; n < width; n += kLanes) {
                store_some(state + i * value_dim + column + n, load(columns + i * kWidth + n), width - n);
            }
        }
    }
}

// output = norm(x) * scale * silu(gate), in the activations' type.
template <class T>
void gated_norm(const qw_delta_arguments& a, const float* x, const T* gate, T* output) {
    V squares = zero();
    for (int64_t i = 0; i < a.value_dim; i += kLanes) {
        const V value = load_some(x + i, a.value_dim - i);
        squares = fma(value, value, squares);
    }
    const V factor = all(1.0f / std::sqrt(sum(squares) / static_cast<float>(a.value_dim) + a.epsilon));
    for (int64_t i = 0; i < a.value_dim; i += kLanes) {
        const int64_t n = a.value_dim - i;
        const V normed = mul(load_some(a.scale + i, n), mul(load_some(x + i, n), factor));
        store_some(output + i, mul(normed, silu(load_some(gate + i, n))), n);
    }
}

inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// The state of one value head in a slot.
inline float* state_of(const qw_delta_arguments& a, int64_t slot, int64_t head) {
    return a.states + (slot * a.value_heads + head) * a.key_dim * a.value_dim;
}

// A block of tokens from `token` of the step on, at one value head; queries and keys are in the block already.
template <class T>
void value_head(const qw_delta_arguments& a, HeadBlock& block, float* state, int64_t token, int64_t count,
                int64_t head) {
    for (int64_t i = 0; i < count; ++i) {
        const int64_t place = (token + i) * a.value_heads + head;
        const float step = softplus(widen(static_cast<const T*>(a.decay)[place]) + a.decay_bias[head]);
        block.decay[i] = std::exp(-a.decay_rate[head] * step);
        block.beta[i] = 1.0f / (1.0f + std::exp(-widen(static_cast<const T*>(a.beta)[place])));
    }
    update_state(block, count, a.key_dim, a.value_dim, state);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t place = ((token + i) * a.value_heads + head) * a.value_dim;
        gated_norm(a, block.output[i], static_cast<const T*>(a.gate) + place, static_cast<T*>(a.output) + place);
    }
}

template <class T>
void delta_row(const qw_delta_arguments& a, int64_t row, int64_t key_head) {
    const Channels<T> in = channels_of<T>(a, row);
    const int64_t keys = a.key_heads * a.key_dim, repeats = a.value_heads / a.key_heads;
    const int64_t query = key_head * a.key_dim, key = keys + query;
    const int64_t first = a.tiled ? key_head : key_head * repeats, step = a.tiled ? a.key_heads : 1;
    const float query_factor = 1.0f / std::sqrt(static_cast<float>(a.key_dim));
    const auto state_bytes = static_cast<size_t>(a.key_dim * a.value_dim) * sizeof(float);
    const auto write_windows = [&](int64_t tokens, int64_t slot) {
        T* window = static_cast<T*>(a.conv_states) + slot * (a.taps - 1) * in.channels;
        write_window(in, tokens, query, a.key_dim, window);
        write_window(in, tokens, key, a.key_dim, window);
        for (int64_t i = 0; i < repeats; ++i) {
            write_window(in, tokens, 2 * keys + (first + i * step) * a.value_dim, a.value_dim, window);
        }
    };
    int64_t save = 0;
    while (save < a.saves && a.save_tokens[save] < a.starts[row]) ++save;
    HeadBlock block;
    for (int64_t begin = 0, end; begin < in.length; begin = end) {
        const int64_t next = save < a.saves ? a.save_tokens[save] + 1 - a.starts[row] : in.length;
        const int64_t stop = next < in.length ? next : in.length;
        end = stop - begin < kBlockTokens ? stop : begin + kBlockTokens;
        const int64_t count = end - begin;
        convolve(in, a.conv, begin, count, query, a.key_dim, block.query);
        convolve(in, a.conv, begin, count, key, a.key_dim, block.key);
        for (int64_t i = 0; i < count; ++i) {
            normalise(block.query[i], a.key_dim, query_factor);
            normalise(block.key[i], a.key_dim, 1.0f);
        }
        const bool saves = save < a.saves && end == next;
        for (int64_t i = 0; i < repeats; ++i) {
            const int64_t head = first + i * step;
            float* state = state_of(a, a.slots[row], head);
            convolve(in, a.conv, begin, count, 2 * keys + head * a.value_dim, a.value_dim, block.value);
            value_head<T>(a, block, state, a.starts[row] + begin, count, head);
            if (saves) std::memcpy(state_of(a, a.save_slots[save], head), state, state_bytes);
        }
        if (saves) write_windows(end, a.save_slots[save++]);
    }
    write_windows(in.length, a.slots[row]);
}

void delta_net(const qw_delta_arguments& a, int64_t row, int64_t key_head) {
    if (a.type == QW_BF16) {
        delta_row<bf16>(a, row, key_head);
    } else {
        delta_row<float>(a, row, key_head);
    }
}

}  // namespace
}  // namespace qwench
