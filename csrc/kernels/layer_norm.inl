// A layer norm of one row, for whoever wants its numbers. Included once per instruction set, after simd.h.
#pragma once

namespace qwench {
namespace {

template <class T>
struct LayerNorm {
    const T *x, *weight, *bias;
    int64_t width;
    V mean, factor, offset;

    LayerNorm(const T* row, int64_t count, const void* scales, const void* added, float to_scales, float epsilon)
        : x(row), weight(static_cast<const T*>(scales)), bias(static_cast<const T*>(added)), width(count),
          offset(all(to_scales)) {
        V total = zero(), squares = zero();
        for (int64_t i = 0; i < width; i += kLanes) total = add(load_some(x + i, width - i), total);
        mean = all(sum(total) / static_cast<float>(width));
        for (int64_t i = 0; i < width; i += kLanes) {
            V apart = sub(load_some(x + i, width - i), mean);
            if (width - i < kLanes) apart = first_lanes(apart, zero(), width - i);
            squares = fma(apart, apart, squares);
        }
        factor = all(1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + epsilon));
    }

    // Numbers [i, i + 16) of the row, as far as there are any.
    QW_INLINE V at(int64_t i) const {
        const int64_t n = width - i;
        const V scale = mul(add(load_some(weight + i, n), offset), factor);
        return fma(sub(load_some(x + i, n), mean), scale, load_some(bias + i, n));
    }
};

}  // namespace
}  // namespace qwench
