// Floats of 16 bits: BF16, the upper half of an fp32, and IEEE's half, which only scales have. Conversions for single
// values; vectors have their own in simd.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace qwench {

struct bf16 {
    uint16_t bits;
};

static inline float widen(bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

static inline float widen(float value) { return value; }

// To nearest, ties to even; a NaN stays one.
static inline bf16 narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// A value as an element of either type.
static inline void put(float* to, float value) { *to = value; }
static inline void put(float* to, bf16 value) { *to = widen(value); }
static inline void put(bf16* to, float value) { *to = narrow(value); }
static inline void put(bf16* to, bf16 value) { *to = value; }

// IEEE half -> fp32, exactly.
static inline float from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
    uint32_t bits = sign | (magnitude + (112 << 10)) << 13;  // the exponents' zeros are 15 and 127
    if (magnitude >= 0x7c00) bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    if (magnitude < 0x400) result = (sign ? -1.0f : 1.0f) * static_cast<float>(magnitude) / 16777216.0f;
    return result;
}

// fp32 -> IEEE half, to nearest, ties to even.
static inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {  // no normal half: adding a half moves the bits to their place and rounds them
        float moved;
        std::memcpy(&moved, &magnitude, sizeof moved);
        moved += 0.5f;
        std::memcpy(&bits, &moved, sizeof bits);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

}  // namespace qwench
