// AVX2 with FMA: 16 registers of 8 lanes.
#include <type_traits>

#include "kernels.h"
#include "packed.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AVX2__) && defined(__FMA__)

namespace qwench {
namespace {

constexpr int64_t kWideLimit = 1;
constexpr int kWideTokens = 1;
constexpr int kTallTokens = 6;
constexpr int kStateVectors = 1;

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

const Kernels* avx2_kernels() {
    static const Kernels table = {
        "avx2", linear_kernel<FloatStep>, linear_kernel<WidenedPairStep>, nullptr, Inputs::rows, coded_pair(),
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
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace qwench

#endif
