// The tokens of one sequence through one key head of a Gated DeltaNet mixer, with the value heads that read it.
// Included once per instruction set, after simd.h.
//
// A prompt goes through the same steps as a single token, in the same order, so any cut of a sequence gives the same
// bits. It is fast because a few columns of the state stay in the first cache over a block of tokens: the chunked form
// of the rule would spend as many multiplications on its triangular systems as it saves on the state.

namespace qwench {
namespace {

constexpr int64_t kBlockTokens = 32;

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

// Tokens [begin, begin + count) of channels [first, first + width), convolved and through silu.
template <class T>
void convolve(const Channels<T>& in, const float* conv, int64_t begin, int64_t count, int64_t first, int64_t width,
              float (*output)[QW_DELTA_WIDTH]) {
    for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t n = width - i;
        for (int64_t token = 0; token < count; ++token) {
            V total = zero();
            for (int64_t tap = 0; tap < in.taps; ++tap) {
                const T* input = in.at(begin + token - (in.taps - 1) + tap) + first + i;
                total = fma(load_some(input, n), load_some(conv + tap * in.channels + first + i, n), total);
            }
            T rounded[kLanes];  // the convolution's result is of the activations' type
            store(rounded, silu(total));
            store_some(output[token] + i, load(rounded), n);
        }
    }
}

// Moves the window of channels [first, first + width) behind the last token of this call.
template <class T>
void advance_window(const Channels<T>& in, int64_t first, int64_t width) {
    for (int64_t column = 0; column + 1 < in.taps; ++column) {
        const T* from = in.at(in.length - (in.taps - 1) + column) + first;
        std::memmove(in.window + column * in.channels + first, from, static_cast<size_t>(width) * sizeof(T));
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

// S <- decay S;  d = beta (v - S^T k);  S <- S + k d^T;  output = S^T q   for N vectors of columns from `column`, or
// the first `some` columns of one vector where kSome.
template <int N, bool kSome = false>
void update_columns(HeadBlock& block, int64_t token, int64_t key_dim, int64_t value_dim, float* state, int64_t column,
                    int64_t some = kLanes) {
    const int64_t size = kSome ? some : kLanes;
    const float* keys = block.key[token];
    const float* queries = block.query[token];
    const V decay = all(block.decay[token]);
    V even[N], odd[N];  // two chains of additions, because one would wait for itself
    for (int n = 0; n < N; ++n) even[n] = odd[n] = zero();
    int64_t i = 0;
    for (; i + 1 < key_dim; i += 2) {
        const V first = all(keys[i]), second = all(keys[i + 1]);
        const float* row = state + i * value_dim + column;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            even[n] = fma(first, load_some(row + n * kLanes, size), even[n]);
            odd[n] = fma(second, load_some(row + value_dim + n * kLanes, size), odd[n]);
        }
    }
    for (int n = 0; i < key_dim && n < N; ++n) {
        even[n] = fma(all(keys[i]), load_some(state + i * value_dim + column + n * kLanes, size), even[n]);
    }
    V update[N], result[N];
    for (int n = 0; n < N; ++n) {
        const V read = mul(decay, add(even[n], odd[n]));
        update[n] = mul(sub(load_some(block.value[token] + column + n * kLanes, size), read), all(block.beta[token]));
        result[n] = zero();
    }
    for (i = 0; i < key_dim; ++i) {
        const V key = all(keys[i]), query = all(queries[i]);
        float* row = state + i * value_dim + column;
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const V fresh = fma(key, update[n], mul(decay, load_some(row + n * kLanes, size)));
            store_some(row + n * kLanes, fresh, size);
            result[n] = fma(query, fresh, result[n]);
        }
    }
    for (int n = 0; n < N; ++n) store_some(block.output[token] + column + n * kLanes, result[n], size);
}

// kStateVectors is the including unit's: how many vectors of columns it has registers for.
void update_state(HeadBlock& block, int64_t count, int64_t key_dim, int64_t value_dim, float* state) {
    int64_t column = 0;
    for (; column + kStateVectors * kLanes <= value_dim; column += kStateVectors * kLanes) {
        for (int64_t token = 0; token < count; ++token) {
            update_columns<kStateVectors>(block, token, key_dim, value_dim, state, column);
        }
    }
    for (; column < value_dim; column += kLanes) {
        const int64_t left = value_dim - column;
        for (int64_t token = 0; token < count; ++token) {
            if (left >= kLanes) {
                update_columns<1>(block, token, key_dim, value_dim, state, column);
            } else {
                update_columns<1, true>(block, token, key_dim, value_dim, state, column, left);
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

// A block of tokens from `token` of the step on, at one value head; queries and keys are in the block already.
template <class T>
void value_head(const qw_delta_arguments& a, HeadBlock& block, int64_t slot, int64_t token, int64_t count,
                int64_t head) {
    for (int64_t i = 0; i < count; ++i) {
        const int64_t place = (token + i) * a.value_heads + head;
        const float step = softplus(widen(static_cast<const T*>(a.decay)[place]) + a.decay_bias[head]);
        block.decay[i] = std::exp(-a.decay_rate[head] * step);
        block.beta[i] = 1.0f / (1.0f + std::exp(-widen(static_cast<const T*>(a.beta)[place])));
    }
    float* state = a.states + (slot * a.value_heads + head) * a.key_dim * a.value_dim;
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
    HeadBlock block;
    for (int64_t begin = 0; begin < in.length; begin += kBlockTokens) {
        const int64_t count = in.length - begin < kBlockTokens ? in.length - begin : kBlockTokens;
        convolve(in, a.conv, begin, count, query, a.key_dim, block.query);
        convolve(in, a.conv, begin, count, key, a.key_dim, block.key);
        for (int64_t i = 0; i < count; ++i) {
            normalise(block.query[i], a.key_dim, query_factor);
            normalise(block.key[i], a.key_dim, 1.0f);
        }
        for (int64_t i = 0; i < repeats; ++i) {
            const int64_t head = first + i * step;
            convolve(in, a.conv, begin, count, 2 * keys + head * a.value_dim, a.value_dim, block.value);
            value_head<T>(a, block, a.slots[row], a.starts[row] + begin, count, head);
        }
    }
    advance_window(in, query, a.key_dim);
    advance_window(in, key, a.key_dim);
    for (int64_t i = 0; i < repeats; ++i) {
        advance_window(in, 2 * keys + (first + i * step) * a.value_dim, a.value_dim);
    }
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
