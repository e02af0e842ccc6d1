// BF16: the upper half of an fp32. Conversions for single values; vectors have their own in simd.h.
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

}  // namespace qwench
