// AVX-512 (F, BW, DQ, VL): 32 registers of 16 lanes.
#include <type_traits>

#include "kernels.h"
#include "packed.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AVX512F__)

namespace qwench {
namespace {

constexpr int64_t kWideLimit = INT64_MAX;
constexpr int kWideTokens = 6;
constexpr int kTallTokens = 6;
constexpr int kStateVectors = 2;

}  // namespace
}  // namespace qwench

#include "kernels/attention.inl"
#include "kernels/choosing.inl"
#include "kernels/delta.inl"
#include "kernels/experts.inl"
#include "kernels/linear.inl"
#include "kernels/frames.inl"
#include "kernels/nested.inl"
#include "kernels/layers.inl"
#include "kernels/norm.inl"
#include "kernels/pointwise.inl"
#include "kernels/rounding.inl"

namespace qwench {

const Kernels* avx512_kernels() {
    static const Kernels table = {
        "avx512", linear_kernel<FloatStep>, linear_kernel<WidenedPairStep>, nullptr, Inputs::rows, coded_pair(),
        norm, delta_net, attend, merge_attention,
        frame_kernels<float, FloatStep>(), frame_kernels<bf16, WidenedPairStep>(), {round_tile, layer_bytes},
        expert_probabilities, gate_expert, sum_experts, find_largest, gather_top, weigh_logits,
        pointwise, widen_row, rotate, round_rows,
    };
    return &table;
}

}  // namespace qwench

#else

namespace qwench {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace qwench

#endif
