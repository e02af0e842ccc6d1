// Powers of two, and what the vision tower makes of them. Included once per instruction set, after simd.h.
#pragma once

namespace qwench {
namespace {

// 2^x, for x not above 0: by Taylor's series of 2^r, |r| <= 1/2, whose remainder is below 2^-14 (kShort) or 2^-27.
template <bool kShort>
QW_INLINE V power_of_two(V x) {
#if !defined(__AVX512F__)
    x = most(all(-150.0f), x);  // their scaling wants an exponent
#endif
    const V n = whole(x), r = sub(x, n);
    V series = all(9.618129108e-3f);
    if constexpr (!kShort) {
        series = fma(all(1.525273380e-5f), r, all(1.540353039e-4f));
        series = fma(series, r, all(1.333355815e-3f));
        series = fma(series, r, all(9.618129108e-3f));
    }
    series = fma(series, r, all(5.550410866e-2f));
    series = fma(series, r, all(2.402265070e-1f));
    series = fma(series, r, all(6.931471806e-1f));
    series = fma(series, r, all(1.0f));
    return scale_by_power_of_two(series, n);
}

// x / (1 + 2^z), z = -2 sqrt(2 / pi) (x + 0.044715 x^3) log2(e): gelu by its tanh. Behind the limits of z nothing changes.
template <bool kShort>
QW_INLINE V gelu(V x) {
    const V z = mul(x, fma(mul(x, x), all(-0.1029432396f), all(-2.302208199f)));
    const V power = power_of_two<kShort>(most(all(-150.0f), least(all(200.0f), z)));
    return div(x, add(all(1.0f), power));
}

}  // namespace
}  // namespace qwench
