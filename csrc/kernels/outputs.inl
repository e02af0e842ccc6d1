// How a linear layer's sums become outputs. Part of both linear kernels; included after simd.h.
#pragma once

namespace qwench {
namespace {

// Sixteen sums of one token as outputs from `output` on, as far as they exist: rounded, then added to the residual.
template <class Output>
QW_INLINE void store_row(const qw_linear_arguments& a, int64_t token, int64_t output, V sums) {
    Output* y = static_cast<Output*>(a.y) + token * a.y_stride + output;
    const int64_t left = a.weight->out - output;
    if (a.residual != nullptr) {
        const Output* residual = static_cast<const Output*>(a.residual) + token * a.residual_stride + output;
        sums = add(load_some(residual, left), rounded<Output>(sums));
    }
    store_some(y, sums, left);
}

}  // namespace
}  // namespace qwench
