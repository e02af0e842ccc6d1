// AVX512-BF16: two BF16 products an instruction. Only the linear layer; everything else is AVX-512's.
#include "kernels.h"
#include "packed.h"
#include "simd.h"

#if defined(__AVX512BF16__)

namespace qwench {
namespace {

constexpr int64_t kWideLimit = INT64_MAX;
constexpr int kWideTokens = 6;
constexpr int kTallTokens = 6;

}  // namespace
}  // namespace qwench

#include "kernels/linear.inl"

namespace qwench {
namespace {

struct PairStep {
    using Input = bf16;
    static constexpr bool kBf16 = true;
    static constexpr int64_t kDepth = 2;

    static QW_INLINE __m512bh pairs(__m512i bits) { return reinterpret_cast<__m512bh>(bits); }

    template <int M, int N>
    static QW_INLINE void step(const bf16* x, int64_t stride, const char* weights, V (&sums)[M][N]) {
        __m512bh w[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) w[n] = pairs(_mm512_load_si512(weights + n * kPanel * kStepBytes));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            int32_t both;
            std::memcpy(&both, x + m * stride, sizeof both);
            const __m512bh input = pairs(_mm512_set1_epi32(both));
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n].v = _mm512_dpbf16_ps(sums[m][n].v, input, w[n]);
        }
    }
};

QW_INLINE void keep_weights(bf16* to, V weights) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weights.v)));
}

}  // namespace
}  // namespace qwench

#include "kernels/frames.inl"

namespace qwench {

LinearKernel avx512_bf16_linear() { return linear_kernel<PairStep>; }
FrameKernels avx512_bf16_frames() { return frame_kernels<bf16, PairStep>(); }

}  // namespace qwench

#else

namespace qwench {
LinearKernel avx512_bf16_linear() { return nullptr; }
FrameKernels avx512_bf16_frames() { return {}; }
}  // namespace qwench

#endif
