// Heads turned by their angles. Included once per instruction set, after simd.h.
#pragma once

namespace qwench {
namespace {

// `output` may be x itself.
template <class T>
void turn_head(const T* x, T* output, int64_t head_dim, int64_t half, const float* cosines, const float* sines) {
    for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t n = half - i;
        const V cosine = load_some(cosines + i, n), sine = load_some(sines + i, n);
        const V one = load_some(x + i, n), other = load_some(x + half + i, n);
        store_some(output + i, sub(mul(one, cosine), mul(other, sine)), n);
        store_some(output + half + i, add(mul(other, cosine), mul(one, sine)), n);
    }
    const int64_t turned = 2 * half;
    if (output != x) std::memcpy(output + turned, x + turned, static_cast<size_t>(head_dim - turned) * sizeof(T));
}

}  // namespace
}  // namespace qwench
