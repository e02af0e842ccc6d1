// Sixteen fp32 side by side, for whatever the including translation unit is compiled for, so that a kernel is written
// once. Everything is in an unnamed namespace: two instruction sets must never share an inline function.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bf16.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace qwench {
namespace {

constexpr int kLanes = 16;

#define QW_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)

struct V {
    __m512 v;
};

QW_INLINE V zero() { return {_mm512_setzero_ps()}; }
QW_INLINE V all(float value) { return {_mm512_set1_ps(value)}; }
QW_INLINE V load(const float* from) { return {_mm512_loadu_ps(from)}; }
QW_INLINE void store(float* to, V a) { _mm512_storeu_ps(to, a.v); }
QW_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QW_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
QW_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
QW_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
QW_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
QW_INLINE V least(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
QW_INLINE V most(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }   // b where either is NaN
QW_INLINE V whole(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
QW_INLINE V choose_greater(V a, V b, V yes, V no) {  // where a > b
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), no.v, yes.v)};
}
QW_INLINE void store_half(void* to, V a) {  // IEEE's, to nearest
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
QW_INLINE V scale_by_power_of_two(V a, V n) { return {_mm512_scalef_ps(a.v, n.v)}; }
QW_INLINE V load(const bf16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
// Rounded to BF16 in the upper halves; what is in the lower ones means nothing.
QW_INLINE __m512i round_halves(V a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
QW_INLINE void store(bf16* to, V a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_halves(a), 16)));
}
// Numbers that BF16 holds as they are.
QW_INLINE void store_exact(bf16* to, V a) {
    const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(a.v), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(upper));
}
// The first and the second elements of sixteen pairs of BF16.
QW_INLINE V firsts(const void* pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16))};
}
QW_INLINE V seconds(const void* pairs) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), upper))};
}

#elif defined(__AVX2__)

struct V {
    __m256 a, b;
};

QW_INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
QW_INLINE V all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
QW_INLINE V load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
QW_INLINE void store(float* to, V x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}
QW_INLINE V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
QW_INLINE V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
QW_INLINE V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
QW_INLINE V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
QW_INLINE V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
QW_INLINE V least(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
QW_INLINE V most(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
QW_INLINE __m256 choose_half(__m256 x, __m256 y, __m256 yes, __m256 no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, y, _CMP_GT_OQ));
}
QW_INLINE V choose_greater(V x, V y, V yes, V no) {  // where x > y
    return {choose_half(x.a, y.a, yes.a, no.a), choose_half(x.b, y.b, yes.b, no.b)};
}
QW_INLINE void store_half(void* to, V x) {  // IEEE's, to nearest
    __m128i* at = static_cast<__m128i*>(to);
    _mm_storeu_si128(at, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(at + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
QW_INLINE __m256 whole_half(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QW_INLINE V whole(V x) { return {whole_half(x.a), whole_half(x.b)}; }
// Twice half the power, because 2^128 is no fp32 while its product with a small number may be one.
QW_INLINE __m256 power_half(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
QW_INLINE __m256 scale_half(__m256 x, __m256 n) {
    const __m256 half = whole_half(_mm256_mul_ps(n, _mm256_set1_ps(0.5f)));
    return _mm256_mul_ps(_mm256_mul_ps(x, power_half(half)), power_half(_mm256_sub_ps(n, half)));
}
QW_INLINE V scale_by_power_of_two(V x, V n) { return {scale_half(x.a, n.a), scale_half(x.b, n.b)}; }
QW_INLINE __m256 widen_half(const bf16* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
QW_INLINE V load(const bf16* from) { return {widen_half(from), widen_half(from + 8)}; }
QW_INLINE __m256i round_half(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
QW_INLINE void store(bf16* to, V x) {
    const __m256i mixed = _mm256_packus_epi32(round_half(x.a), round_half(x.b));  // quarters a0 b0 a1 b1
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
}
QW_INLINE void store_exact(bf16* to, V x) {
    const __m256i first = _mm256_srli_epi32(_mm256_castps_si256(x.a), 16);
    const __m256i mixed = _mm256_packus_epi32(first, _mm256_srli_epi32(_mm256_castps_si256(x.b), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
}
QW_INLINE __m256 firsts_half(const char* pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)), 16));
}
QW_INLINE __m256 seconds_half(const char* pairs) {
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
    return _mm256_castsi256_ps(_mm256_and_si256(bits, upper));
}
QW_INLINE V firsts(const void* pairs) {
    const char* at = static_cast<const char*>(pairs);
    return {firsts_half(at), firsts_half(at + 32)};
}
QW_INLINE V seconds(const void* pairs) {
    const char* at = static_cast<const char*>(pairs);
    return {seconds_half(at), seconds_half(at + 32)};
}

#else

// Plain C++: the slow version every processor can run, and what the others are compared with.
struct V {
    float lane[kLanes];
};

template <class Each>
QW_INLINE V lanes(Each each) {
    V result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = each(i);
    return result;
}

QW_INLINE V all(float value) {
    return lanes([&](int) { return value; });
}
QW_INLINE V zero() { return all(0.0f); }
QW_INLINE V load(const float* from) {
    return lanes([&](int i) { return from[i]; });
}
QW_INLINE V load(const bf16* from) {
    return lanes([&](int i) { return widen(from[i]); });
}
QW_INLINE void store(float* to, V a) { std::memcpy(to, a.lane, sizeof a.lane); }
QW_INLINE void store(bf16* to, V a) {
    for (int i = 0; i < kLanes; ++i) to[i] = narrow(a.lane[i]);
}
QW_INLINE void store_exact(bf16* to, V a) { store(to, a); }
QW_INLINE V fma(V a, V b, V c) {  // rounds twice: a true one is a library call without the instruction
    return lanes([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
QW_INLINE V add(V a, V b) {
    return lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
QW_INLINE V sub(V a, V b) {
    return lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
QW_INLINE V mul(V a, V b) {
    return lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
QW_INLINE V div(V a, V b) {
    return lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
QW_INLINE V least(V a, V b) {
    return lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
QW_INLINE V most(V a, V b) {
    return lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
QW_INLINE V choose_greater(V a, V b, V yes, V no) {  // where a > b
    return lanes([&](int i) { return a.lane[i] > b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
QW_INLINE void store_half(void* to, V a) {
    uint16_t halves[kLanes];
    for (int i = 0; i < kLanes; ++i) halves[i] = to_half(a.lane[i]);
    std::memcpy(to, halves, sizeof halves);
}
QW_INLINE V whole(V a) {
    return lanes([&](int i) { return std::nearbyint(a.lane[i]); });
}
QW_INLINE V scale_by_power_of_two(V a, V n) {
    return lanes([&](int i) { return std::ldexp(a.lane[i], static_cast<int>(n.lane[i])); });
}
QW_INLINE V firsts(const void* pairs) {
    const bf16* at = static_cast<const bf16*>(pairs);
    return lanes([&](int i) { return widen(at[2 * i]); });
}
QW_INLINE V seconds(const void* pairs) {
    const bf16* at = static_cast<const bf16*>(pairs);
    return lanes([&](int i) { return widen(at[2 * i + 1]); });
}

#endif

// The first n lanes, the others zero; and writing the first n lanes.
template <class T>
QW_INLINE V load_some(const T* from, int64_t n) {
    if (n >= kLanes) return load(from);
    T whole_vector[kLanes] = {};
    std::memcpy(whole_vector, from, static_cast<size_t>(n) * sizeof(T));
    return load(whole_vector);
}

// As it would be after a round trip through memory.
template <class T>
QW_INLINE V rounded(V a) {
    T stored[kLanes];
    store(stored, a);
    return load(stored);
}
template <>
QW_INLINE V rounded<float>(V a) {
    return a;
}
#if defined(__AVX512F__)
template <>
QW_INLINE V rounded<bf16>(V a) {
    return {_mm512_castsi512_ps(_mm512_and_si512(round_halves(a), _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}
#endif

template <class T>
QW_INLINE void store_some(T* to, V a, int64_t n) {
    if (n >= kLanes) return store(to, a);
    T whole_vector[kLanes];
    store(whole_vector, a);
    std::memcpy(to, whole_vector, static_cast<size_t>(n) * sizeof(T));
}

// The sum of all lanes, always in the same order: halves, quarters, eighths, pairs.
#if defined(__AVX2__)
QW_INLINE float sum(__m256 half) {
    const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    const __m128 eighth = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(eighth, _mm_movehdup_ps(eighth)));
}
#endif
QW_INLINE float sum(V a) {
#if defined(__AVX512F__)
    return sum(_mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
#elif defined(__AVX2__)
    return sum(_mm256_add_ps(a.a, a.b));
#else
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
    }
    return a.lane[0];
#endif
}

// The first n lanes of a, the others of b.
QW_INLINE V first_lanes(V a, V b, int64_t n) {
#if defined(__AVX512F__)
    return {_mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1), b.v, a.v)};
#else
    float mixed[kLanes], others[kLanes];
    store(mixed, a);
    store(others, b);
    for (int64_t i = n; i < kLanes; ++i) mixed[i] = others[i];
    return load(mixed);
#endif
}

QW_INLINE float largest(V a) {
    float each[kLanes];
    store(each, a);
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) each[i] = each[i] > each[i + half] ? each[i] : each[i + half];
    }
    return each[0];
}

// to[c * stride + r] = word c of row r, of sixteen rows of sixteen four-byte words.
QW_INLINE void transpose_words(const char* const (&rows)[kLanes], uint32_t* to, int64_t stride) {
#if defined(__AVX512F__)
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // a[i + j] holds columns j, j + 4, j + 8, j + 12 of rows i to i + 3
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even_above = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
        const __m512i odd_above = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        const __m512i even_below = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        const __m512i odd_below = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_si512(to + j * stride, _mm512_shuffle_i32x4(even_above, even_below, 0x88));
        _mm512_storeu_si512(to + (j + 4) * stride, _mm512_shuffle_i32x4(odd_above, odd_below, 0x88));
        _mm512_storeu_si512(to + (j + 8) * stride, _mm512_shuffle_i32x4(even_above, even_below, 0xdd));
        _mm512_storeu_si512(to + (j + 12) * stride, _mm512_shuffle_i32x4(odd_above, odd_below, 0xdd));
    }
#else
    for (int c = 0; c < kLanes; ++c) {
        for (int r = 0; r < kLanes; ++r) std::memcpy(to + c * stride + r, rows[r] + c * 4, 4);
    }
#endif
}

// e^x, within 2 units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series, whose
// remainder after r^7 / 7! is below half a unit. Beyond the limits the result is 0 or infinity as it should be.
QW_INLINE V exponential(V x) {
    x = most(all(-104.0f), least(all(89.0f), x));
    const V n = whole(mul(x, all(1.44269504f)));
    V r = fma(n, all(-0.693359375f), x);  // ln 2 in two parts, the first exact in few bits
    r = fma(n, all(2.12194440e-4f), r);
    V series = all(1.0f / 5040.0f);
    series = fma(series, r, all(1.0f / 720.0f));
    series = fma(series, r, all(1.0f / 120.0f));
    series = fma(series, r, all(1.0f / 24.0f));
    series = fma(series, r, all(1.0f / 6.0f));
    series = fma(series, r, all(0.5f));
    series = fma(series, r, all(1.0f));
    series = fma(series, r, all(1.0f));
    return scale_by_power_of_two(series, n);
}

QW_INLINE V sigmoid(V x) { return div(all(1.0f), add(all(1.0f), exponential(sub(zero(), x)))); }
QW_INLINE V silu(V x) { return div(x, add(all(1.0f), exponential(sub(zero(), x)))); }

}  // namespace
}  // namespace qwench
