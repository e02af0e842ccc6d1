// Sixteen outputs' codes and whole sums side by side, as simd.h has their fp32. Included after it, once per instruction
// set. It knows how bytes are cut, looked up and multiplied, not what they stand for.
#pragma once

#include "simd.h"

namespace qwench {
namespace {

QW_INLINE int32_t four_bytes(const void* from) {
    int32_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return bits;
}

#if defined(__AVX512BW__)

// 64 bytes, and sixteen int32.
struct B {
    __m512i v;
};
struct I {
    __m512i v;
};

QW_INLINE B load_bytes(const void* from) { return {_mm512_loadu_si512(from)}; }
QW_INLINE void store_bytes(void* to, B a) { _mm512_storeu_si512(to, a.v); }
QW_INLINE B all_bytes(int value) { return {_mm512_set1_epi8(static_cast<char>(value))}; }
// Both bytes in turn: of one output the first at even places, of the next one at odd ones.
QW_INLINE B chequered(int first, int second) {
    return {_mm512_set1_epi64(first * 0x0100010000010001 + second * 0x0001000101000100)};
}
QW_INLINE B sixteen_bytes(const void* from) {
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)))};
}
QW_INLINE B sub(B a, B b) { return {_mm512_sub_epi8(a.v, b.v)}; }
QW_INLINE B look_up(B table, B index) { return {_mm512_shuffle_epi8(table.v, index.v)}; }
// Every byte's bits moved by N places, up where N is positive, and only those of `mask` kept; others are zero.
template <int N>
QW_INLINE B moved(B a, B mask) {
    __m512i bits = a.v;
    if constexpr (N > 0) bits = _mm512_slli_epi16(bits, N);
    if constexpr (N < 0) bits = _mm512_srli_epi16(bits, -N);
    return {_mm512_and_si512(bits, mask.v)};
}
template <int N>
QW_INLINE B with_moved(B low, B a, B mask) {
    __m512i bits = a.v;
    if constexpr (N > 0) bits = _mm512_slli_epi16(bits, N);
    if constexpr (N < 0) bits = _mm512_srli_epi16(bits, -N);
    return {_mm512_ternarylogic_epi64(bits, mask.v, low.v, 0xea)};  // (bits & mask) | low
}

QW_INLINE I all_whole(int32_t value) { return {_mm512_set1_epi32(value)}; }
QW_INLINE I load_whole(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
QW_INLINE void store_whole(int32_t* to, I a) { _mm512_storeu_si512(to, a.v); }
QW_INLINE I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
QW_INLINE I mul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
QW_INLINE I most(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
QW_INLINE int32_t largest(I a) { return _mm512_reduce_max_epi32(a.v); }
QW_INLINE int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
QW_INLINE V to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
QW_INLINE I magnitude_bits(V a) { return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))}; }
// Numbers that are whole and within 8 bits.
QW_INLINE I to_whole(V a) { return {_mm512_cvtps_epi32(a.v)}; }
QW_INLINE void store_signed(int8_t* to, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.v));
}
QW_INLINE I whole_signed(const void* from) {  // of bytes
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)))};
}
QW_INLINE I whole_unsigned(const void* from) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)))};
}
// Pairs of numbers that 16 bits hold.
QW_INLINE I pairs_of(I low, I high) {
    return {_mm512_mask_blend_epi16(0xaaaaaaaa, low.v, _mm512_slli_epi32(high.v, 16))};
}
QW_INLINE V load_half(const void* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)))};
}

// sums + for each output its pair times x[0..1].
QW_INLINE I multiply_add_pairs(I sums, I pairs, const int16_t* x) {
    const __m512i inputs = _mm512_set1_epi32(four_bytes(x));
#if defined(__AVX512VNNI__)
    return {_mm512_dpwssd_epi32(sums.v, pairs.v, inputs)};
#else
    return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(pairs.v, inputs))};
#endif
}

// sums + for each output its four bytes times x[0..3]. Bytes are at most 127, or 255 with kWide.
template <bool kWide>
QW_INLINE I multiply_add(I sums, B bytes, const int8_t* x) {
#if defined(__AVX512VNNI__)
    // _mm512_dpbusd_epi32 of _mm512_set1_epi32, of which GCC makes two instructions.
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums.v) : "v"(bytes.v), "m"(*reinterpret_cast<const int8_t(*)[4]>(x)));
    return sums;
#else
    const __m512i inputs = _mm512_set1_epi32(four_bytes(x));
    const __m512i ones = _mm512_set1_epi16(1);
    if constexpr (!kWide) {
        return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(_mm512_maddubs_epi16(bytes.v, inputs), ones))};
    }
    // Sums of two products must stay within 16 bits: by halves of a byte.
    const __m512i half = _mm512_set1_epi8(15);
    const __m512i low = _mm512_maddubs_epi16(_mm512_and_si512(bytes.v, half), inputs);
    const __m512i high = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16(bytes.v, 4), half), inputs);
    const __m512i both = _mm512_add_epi32(_mm512_madd_epi16(low, ones), _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
    return {_mm512_add_epi32(sums.v, both)};
#endif
}

#elif defined(__AVX2__)

struct B {
    __m256i a, b;
};
struct I {
    __m256i a, b;
};

QW_INLINE __m256i load_half_bytes(const void* from, int64_t at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(from) + at));
}
QW_INLINE B load_bytes(const void* from) { return {load_half_bytes(from, 0), load_half_bytes(from, 32)}; }
QW_INLINE void store_bytes(void* to, B x) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), x.a);
    _mm256_storeu_si256(static_cast<__m256i*>(to) + 1, x.b);
}
QW_INLINE B all_bytes(int value) {
    const __m256i each = _mm256_set1_epi8(static_cast<char>(value));
    return {each, each};
}
QW_INLINE B chequered(int first, int second) {
    const __m256i each = _mm256_set1_epi64x(first * 0x0100010000010001 + second * 0x0001000101000100);
    return {each, each};
}
QW_INLINE B sixteen_bytes(const void* from) {
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
    return {both, both};
}
QW_INLINE B sub(B x, B y) { return {_mm256_sub_epi8(x.a, y.a), _mm256_sub_epi8(x.b, y.b)}; }
QW_INLINE B look_up(B table, B index) {
    return {_mm256_shuffle_epi8(table.a, index.a), _mm256_shuffle_epi8(table.b, index.b)};
}
template <int N>
QW_INLINE __m256i moved_half(__m256i bits, __m256i mask) {
    if constexpr (N > 0) bits = _mm256_slli_epi16(bits, N);
    if constexpr (N < 0) bits = _mm256_srli_epi16(bits, -N);
    return _mm256_and_si256(bits, mask);
}
template <int N>
QW_INLINE B moved(B x, B mask) {
    return {moved_half<N>(x.a, mask.a), moved_half<N>(x.b, mask.b)};
}
template <int N>
QW_INLINE B with_moved(B low, B x, B mask) {
    const B high = moved<N>(x, mask);
    return {_mm256_or_si256(low.a, high.a), _mm256_or_si256(low.b, high.b)};
}

QW_INLINE I all_whole(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
QW_INLINE I load_whole(const int32_t* from) { return {load_half_bytes(from, 0), load_half_bytes(from, 32)}; }
QW_INLINE void store_whole(int32_t* to, I x) { store_bytes(to, {x.a, x.b}); }
QW_INLINE I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
QW_INLINE I mul(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
QW_INLINE I most(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
QW_INLINE int32_t largest(I x) {
    const __m256i eight = _mm256_max_epi32(x.a, x.b);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}
QW_INLINE int32_t sum(I x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
QW_INLINE V to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
QW_INLINE I magnitude_bits(V x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(x.a), mask), _mm256_and_si256(_mm256_castps_si256(x.b), mask)};
}
QW_INLINE I to_whole(V x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
QW_INLINE void store_signed(int8_t* to, I x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}
QW_INLINE I whole_signed(const void* from) {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
QW_INLINE I whole_unsigned(const void* from) {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(from));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
QW_INLINE I pairs_of(I low, I high) {
    return {_mm256_blend_epi16(low.a, _mm256_slli_epi32(high.a, 16), 0xaa),
            _mm256_blend_epi16(low.b, _mm256_slli_epi32(high.b, 16), 0xaa)};
}
QW_INLINE I multiply_add_pairs(I sums, I pairs, const int16_t* x) {
    const __m256i inputs = _mm256_set1_epi32(four_bytes(x));
    return {_mm256_add_epi32(sums.a, _mm256_madd_epi16(pairs.a, inputs)),
            _mm256_add_epi32(sums.b, _mm256_madd_epi16(pairs.b, inputs))};
}
QW_INLINE V load_half(const void* from) {
    const __m128i* halves = static_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

template <bool kWide>
QW_INLINE __m256i multiply_add_half(__m256i sums, __m256i bytes, __m256i inputs) {
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (!kWide) {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, inputs), ones));
    }
    // Sums of two products must stay within 16 bits: by halves of a byte.
    const __m256i half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(bytes, half), inputs);
    const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), half), inputs);
    const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    return _mm256_add_epi32(sums, both);
}
template <bool kWide>
QW_INLINE I multiply_add(I sums, B bytes, const int8_t* x) {
    const __m256i inputs = _mm256_set1_epi32(four_bytes(x));
    return {multiply_add_half<kWide>(sums.a, bytes.a, inputs), multiply_add_half<kWide>(sums.b, bytes.b, inputs)};
}

#else

struct B {
    uint8_t byte[4 * kLanes];
};
struct I {
    int32_t lane[kLanes];
};

template <class Each>
QW_INLINE B each_byte(Each each) {
    B result;
    for (int i = 0; i < 4 * kLanes; ++i) result.byte[i] = static_cast<uint8_t>(each(i));
    return result;
}
template <class Each>
QW_INLINE I each_whole(Each each) {
    I result;
    for (int i = 0; i < kLanes; ++i) result.lane[i] = each(i);
    return result;
}

QW_INLINE B load_bytes(const void* from) {
    B result;
    std::memcpy(result.byte, from, sizeof result.byte);
    return result;
}
QW_INLINE void store_bytes(void* to, B a) { std::memcpy(to, a.byte, sizeof a.byte); }
QW_INLINE B all_bytes(int value) {
    return each_byte([&](int) { return value; });
}
QW_INLINE B chequered(int first, int second) {
    return each_byte([&](int i) { return (i / 4 + i) % 2 == 0 ? first : second; });
}
QW_INLINE B sixteen_bytes(const void* from) {
    return each_byte([&](int i) { return static_cast<const uint8_t*>(from)[i % 16]; });
}
QW_INLINE B sub(B a, B b) {
    return each_byte([&](int i) { return a.byte[i] - b.byte[i]; });
}
QW_INLINE B look_up(B table, B index) {
    return each_byte([&](int i) { return table.byte[index.byte[i]]; });
}
template <int N>
QW_INLINE B moved(B a, B mask) {
    return each_byte([&](int i) { return (N > 0 ? a.byte[i] << (N > 0 ? N : 0) : a.byte[i] >> (N < 0 ? -N : 0)) & mask.byte[i]; });
}
template <int N>
QW_INLINE B with_moved(B low, B a, B mask) {
    const B high = moved<N>(a, mask);
    return each_byte([&](int i) { return low.byte[i] | high.byte[i]; });
}

QW_INLINE I all_whole(int32_t value) {
    return each_whole([&](int) { return value; });
}
QW_INLINE I load_whole(const int32_t* from) {
    return each_whole([&](int i) { return from[i]; });
}
QW_INLINE void store_whole(int32_t* to, I a) { std::memcpy(to, a.lane, sizeof a.lane); }
// Past 32 bits they go round as the instructions do, which C++ says of unsigned numbers only: four codes make one word.
QW_INLINE I add(I a, I b) {
    return each_whole([&](int i) { return static_cast<int32_t>(uint32_t(a.lane[i]) + uint32_t(b.lane[i])); });
}
QW_INLINE I mul(I a, I b) {
    return each_whole([&](int i) { return static_cast<int32_t>(uint32_t(a.lane[i]) * uint32_t(b.lane[i])); });
}
QW_INLINE I most(I a, I b) {
    return each_whole([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
QW_INLINE int32_t largest(I a) {
    int32_t found = a.lane[0];
    for (int32_t value : a.lane) found = value > found ? value : found;
    return found;
}
QW_INLINE int32_t sum(I a) {
    int32_t total = 0;
    for (int32_t value : a.lane) total += value;
    return total;
}
QW_INLINE V to_float(I a) {
    return lanes([&](int i) { return static_cast<float>(a.lane[i]); });
}
QW_INLINE I magnitude_bits(V a) {
    return each_whole([&](int i) { return four_bytes(&a.lane[i]) & 0x7fffffff; });
}
QW_INLINE I to_whole(V a) {
    return each_whole([&](int i) { return static_cast<int32_t>(std::nearbyint(a.lane[i])); });
}
QW_INLINE void store_signed(int8_t* to, I a) {
    for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(a.lane[i]);
}
QW_INLINE I whole_signed(const void* from) {
    return each_whole([&](int i) { return static_cast<const int8_t*>(from)[i]; });
}
QW_INLINE I whole_unsigned(const void* from) {
    return each_whole([&](int i) { return static_cast<const uint8_t*>(from)[i]; });
}
QW_INLINE I pairs_of(I low, I high) {
    return each_whole([&](int i) {
        const uint32_t pair = (static_cast<uint32_t>(low.lane[i]) & 0xffff) | static_cast<uint32_t>(high.lane[i]) << 16;
        return static_cast<int32_t>(pair);
    });
}
QW_INLINE I multiply_add_pairs(I sums, I pairs, const int16_t* x) {
    for (int i = 0; i < kLanes; ++i) {
        sums.lane[i] += static_cast<int16_t>(pairs.lane[i]) * x[0] + (pairs.lane[i] >> 16) * x[1];
    }
    return sums;
}
QW_INLINE V load_half(const void* from) {
    return lanes([&](int i) { return from_half(static_cast<const uint16_t*>(from)[i]); });
}

template <bool kWide>
QW_INLINE I multiply_add(I sums, B bytes, const int8_t* x) {
    for (int i = 0; i < 4 * kLanes; ++i) sums.lane[i / 4] += bytes.byte[i] * x[i % 4];
    return sums;
}

#endif

QW_INLINE V load_signed(const void* from) { return to_float(whole_signed(from)); }

// a * b + c rounded once, which simd.h's is not in plain C++.
QW_INLINE V fma_exact(V a, V b, V c) {
#if defined(__AVX2__)
    return fma(a, b, c);
#else
    return lanes([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
#endif
}

}  // namespace
}  // namespace qwench
