// y = x . weight^T over packed weights. Included once per instruction set, after simd.h.
//
// A block of M tokens times N panels stays in registers over the whole depth, so every output is one chain of additions
// in the order of the depth, whatever M and N are: a token alone gets the bits it gets among others.

#include "outputs.inl"

namespace qwench {
namespace {

constexpr int64_t kPrefetchBytes = 4096;  // ahead in the weights' stream: about what arrives while memory answers

// How one step of depth is multiplied: kDepth inputs of type Input times kStepBytes of each output.
struct FloatStep {
    using Input = float;
    static constexpr bool kBf16 = false;
    static constexpr int64_t kDepth = 1;

    template <int M, int N>
    static QW_INLINE void step(const float* x, int64_t stride, const char* weights, V (&sums)[M][N]) {
        V w[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) w[n] = load(reinterpret_cast<const float*>(weights) + n * kPanel);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const V input = all(x[m * stride]);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = fma(input, w[n], sums[m][n]);
        }
    }
};

struct WidenedPairStep {
    using Input = float;
    static constexpr bool kBf16 = true;
    static constexpr int64_t kDepth = 2;

    template <int M, int N>
    static QW_INLINE void step(const float* x, int64_t stride, const char* weights, V (&sums)[M][N]) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const V first = firsts(weights + n * kPanel * kStepBytes);
            const V second = seconds(weights + n * kPanel * kStepBytes);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                sums[m][n] = fma(all(x[m * stride]), first, sums[m][n]);
                sums[m][n] = fma(all(x[m * stride + 1]), second, sums[m][n]);
            }
        }
    }
};

template <class Step, class Output, int M, int N>
void multiply_block(const LinearJob& job, int64_t token, int64_t group, int64_t panel) {
    using Input = typename Step::Input;
    const qw_linear_arguments& a = *job.arguments;
    const qw_weight& weight = *a.weight;
    const int64_t steps = num_steps(Step::kBf16, weight.in);
    const int64_t piece_steps = job.pieces == nullptr ? steps : num_steps(Step::kBf16, job.piece_depth);
    const int64_t step_bytes = panels_of(weight.out, group) * kPanel * kStepBytes;
    const int64_t steps_ahead = kPrefetchBytes / step_bytes;
    const Input* x = static_cast<const Input*>(job.inputs) + token * job.input_stride;
    V sums[M][N];
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) sums[m][n] = zero();
    }
    for (int64_t done = 0, piece = 0; done < steps; done += piece_steps, ++piece) {
        const char* weights = static_cast<const char*>(weight.packed) + group_offset(Step::kBf16, weight.in, group);
        if (job.pieces != nullptr) weights = job.pieces[piece];
        weights += panel * kPanel * kStepBytes;
        const int64_t count = steps - done < piece_steps ? steps - done : piece_steps;
        // The last steps of a piece ask for the first ones of the next.
        const int64_t turn = job.pieces == nullptr ? count : count - steps_ahead;
        const char* ahead = weights + kPrefetchBytes;
        for (int64_t step = 0; step < count; ++step) {
            if (step == turn) ahead = job.pieces[piece + 1] + panel * kPanel * kStepBytes;
            for (int n = 0; n < N && kAsksAhead; ++n) __builtin_prefetch(ahead + n * kPanel * kStepBytes);
            Step::template step<M, N>(x, job.input_stride, weights, sums);
            weights += step_bytes;
            ahead += step_bytes;
            x += Step::kDepth;
        }
    }
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < N; ++n) store_row<Output>(a, token + m, group * kGroup + (panel + n) * kPanel, sums[m][n]);
    }
}

// Tokens [token, token + count) of N panels, count <= M: finds the block that is compiled for just so many.
template <class Step, class Output, int M, int N>
void multiply_up_to(const LinearJob& job, int64_t token, int64_t count, int64_t group, int64_t panel) {
    if constexpr (M > 1) {
        if (count < M) return multiply_up_to<Step, Output, M - 1, N>(job, token, count, group, panel);
    }
    multiply_block<Step, Output, M, N>(job, token, group, panel);
}

// All tokens of N panels, in blocks of nearly equal size of at most M.
template <class Step, class Output, int M, int N>
void multiply_tokens(const LinearJob& job, int64_t group, int64_t panel, int64_t first, int64_t last) {
    for (int64_t blocks = divide_up(last - first, M); blocks > 0; --blocks) {
        const int64_t count = divide_up(last - first, blocks);
        multiply_up_to<Step, Output, M, N>(job, first, count, group, panel);
        first += count;
    }
}

// kWideLimit, kWideTokens and kTallTokens are the including unit's: as many sums as it has registers for.
template <class Step, class Output>
void multiply_group(const LinearJob& job, int64_t group, int64_t first, int64_t last) {
    const int64_t panels = panels_of(job.arguments->weight->out, group);
    if (panels == kGroup / kPanel && last - first <= kWideLimit) {
        multiply_tokens<Step, Output, kWideTokens, kGroup / kPanel>(job, group, 0, first, last);
        return;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
        multiply_tokens<Step, Output, kTallTokens, 1>(job, group, panel, first, last);
    }
}

template <class Step>
void linear_kernel(const LinearJob& job, int64_t group, int64_t first, int64_t last) {
    if (job.arguments->type == QW_BF16) {
        multiply_group<Step, bf16>(job, group, first, last);
    } else {
        multiply_group<Step, float>(job, group, first, last);
    }
}

}  // namespace
}  // namespace qwench
