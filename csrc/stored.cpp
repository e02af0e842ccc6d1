// GGUF's blocks and arrays of codes, taken apart: see stored.h. weights/formats says the same in torch, and is the oracle.
#include "stored.h"

#include <algorithm>
#include <cstring>

namespace qwench {

namespace {

// `count` bytes of two codes each: the low halves, then the high ones.
void nibbles(const uint8_t* from, int count, uint8_t* codes) {
    for (int i = 0; i < count; ++i) {
        codes[i] = from[i] & 15;
        codes[count + i] = from[i] >> 4;
    }
}

// Each half of 32 bytes holds four runs of 32 codes, two bits each.
void pairs(const uint8_t* from, uint8_t* codes) {
    for (int half = 0; half < 2; ++half) {
        for (int run = 0; run < 4; ++run) {
            for (int i = 0; i < 32; ++i) *codes++ = from[half * 32 + i] >> 2 * run & 3;
        }
    }
}

// Adds bit `place` of 32 bytes to 32 codes.
void add_bits(const uint8_t* from, int place, int to, uint8_t* codes) {
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (from[i] >> place & 1) << to);
}

void copy_half(const uint8_t* from, uint8_t* to) { std::memcpy(to, from, 2); }

// The file's min is added, ours is taken away.
void copy_negative(const uint8_t* from, uint8_t* to) {
    to[0] = from[0];
    to[1] = from[1] ^ 0x80;
}

// 2^(exponent - 128) as BF16.
void put_power(uint8_t exponent, uint8_t* to) {
    const int bits = exponent == 0 ? 0x20 : exponent == 1 ? 0x40 : (exponent - 1) << 7;
    to[0] = static_cast<uint8_t>(bits);
    to[1] = static_cast<uint8_t>(bits >> 8);
}

template <int Bytes, bool HasMin, bool HasFifth>
void read_simple(const uint8_t* from, int64_t count, Chunk& chunk) {
    for (int64_t block = 0; block < count; ++block, from += Bytes) {
        uint8_t* codes = chunk.codes + block * 32;
        copy_half(from, chunk.scales + block * 2);
        if (HasMin) copy_negative(from + 2, chunk.mins + block * 2);
        nibbles(from + Bytes - 16, 16, codes);
        if (!HasFifth) continue;
        uint32_t fifth;
        std::memcpy(&fifth, from + Bytes - 20, sizeof fifth);
        for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(codes[i] | (fifth >> i & 1) << 4);
    }
}

void read_q8_0(const uint8_t* from, int64_t count, Chunk& chunk) {
    for (int64_t block = 0; block < count; ++block, from += 34) {
        copy_half(from, chunk.scales + block * 2);
        for (int i = 0; i < 32; ++i) chunk.codes[block * 32 + i] = from[2 + i] ^ 128;
    }
}

void read_mxfp4(const uint8_t* from, int64_t count, Chunk& chunk) {
    for (int64_t block = 0; block < count; ++block, from += 17) {
        put_power(from[0], chunk.scales + block * 2);
        nibbles(from + 1, 16, chunk.codes + block * 32);
    }
}

void read_q2_k(const uint8_t* from, int64_t, Chunk& chunk) {
    for (int i = 0; i < 16; ++i) {
        chunk.scales[i] = from[i] & 15;
        chunk.mins[i] = from[i] >> 4;
    }
    pairs(from + 16, chunk.codes);
    copy_half(from + 80, chunk.super_scale);
    copy_half(from + 82, chunk.super_min);
}

void read_q3_k(const uint8_t* from, int64_t, Chunk& chunk) {
    pairs(from + 32, chunk.codes);
    for (int run = 0; run < 8; ++run) add_bits(from, run, 2, chunk.codes + run * 32);
    const uint8_t* packed = from + 96;
    for (int i = 0; i < 16; ++i) {
        const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4, high = packed[8 + i % 4] >> 2 * (i / 4) & 3;
        chunk.scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
    }
    copy_half(from + 108, chunk.super_scale);
}

// Super-scale, super-min, and eight scales and eight mins of six bits each in 12 bytes.
void read_k_scales(const uint8_t* from, Chunk& chunk) {
    copy_half(from, chunk.super_scale);
    copy_half(from + 2, chunk.super_min);
    const uint8_t *first = from + 4, *second = from + 8, *third = from + 12;
    for (int i = 0; i < 4; ++i) {
        chunk.scales[i] = first[i] & 63;
        chunk.scales[4 + i] = static_cast<uint8_t>((third[i] & 15) | first[i] >> 6 << 4);
        chunk.mins[i] = second[i] & 63;
        chunk.mins[4 + i] = static_cast<uint8_t>(third[i] >> 4 | second[i] >> 6 << 4);
    }
}

void read_q4_k(const uint8_t* from, int64_t, Chunk& chunk) {
    read_k_scales(from, chunk);
    for (int pair = 0; pair < 4; ++pair) nibbles(from + 16 + pair * 32, 32, chunk.codes + pair * 64);
}

void read_q5_k(const uint8_t* from, int64_t, Chunk& chunk) {
    read_k_scales(from, chunk);
    for (int pair = 0; pair < 4; ++pair) nibbles(from + 48 + pair * 32, 32, chunk.codes + pair * 64);
    for (int run = 0; run < 8; ++run) add_bits(from + 16, run, 4, chunk.codes + run * 32);
}

void read_q6_k(const uint8_t* from, int64_t, Chunk& chunk) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *low = from + half * 64, *high = from + 128 + half * 32;
        uint8_t* codes = chunk.codes + half * 128;
        nibbles(low, 64, codes);
        for (int run = 0; run < 4; ++run) {
            for (int i = 0; i < 32; ++i) {
                uint8_t& code = codes[run * 32 + i];
                code = static_cast<uint8_t>(code | (high[i] >> 2 * run & 3) << 4);
            }
        }
    }
    std::memcpy(chunk.scales, from + 192, 16);
    copy_half(from + 208, chunk.super_scale);
}

void read_iq4_xs(const uint8_t* from, int64_t, Chunk& chunk) {
    copy_half(from, chunk.super_scale);
    for (int i = 0; i < 8; ++i) {
        const int low = from[4 + i / 2] >> 4 * (i % 2) & 15, high = from[2 + i / 4] >> 2 * (i % 4) & 3;
        chunk.scales[i] = static_cast<uint8_t>((low | high << 4) - 32);
        nibbles(from + 8 + i * 16, 16, chunk.codes + i * 32);
    }
}

// What a format's reader fills must be what the packed type has.
template <int Bits, int Block, bool Nested, bool HasMin, int Scales>
bool fits(const qw_weight_type& type) {
    return type.element == QW_CODES && type.bits == Bits && type.block == Block && (type.nested != 0) == Nested &&
           (type.has_min != 0) == HasMin && type.scale_type == Scales;
}

struct Numbered {
    int32_t number;
    BlockFormat format;
};

constexpr Numbered kFormats[] = {
    {2, {32, 18, fits<4, 32, false, false, QW_F16>, read_simple<18, false, false>}},  // Q4_0
    {3, {32, 20, fits<4, 32, false, true, QW_F16>, read_simple<20, true, false>}},    // Q4_1
    {6, {32, 22, fits<5, 32, false, false, QW_F16>, read_simple<22, false, true>}},   // Q5_0
    {7, {32, 24, fits<5, 32, false, true, QW_F16>, read_simple<24, true, true>}},     // Q5_1
    {8, {32, 34, fits<8, 32, false, false, QW_F16>, read_q8_0}},
    {10, {256, 84, fits<2, 16, true, true, QW_F16>, read_q2_k}},
    {11, {256, 110, fits<3, 16, true, false, QW_F16>, read_q3_k}},
    {12, {256, 144, fits<4, 32, true, true, QW_F16>, read_q4_k}},
    {13, {256, 176, fits<5, 32, true, true, QW_F16>, read_q5_k}},
    {14, {256, 210, fits<6, 16, true, false, QW_F16>, read_q6_k}},
    {20, {32, 18, fits<4, 32, false, false, QW_F16>, read_simple<18, false, false>}},  // IQ4_NL
    {23, {256, 136, fits<4, 32, true, false, QW_F16>, read_iq4_xs}},
    {39, {32, 17, fits<4, 32, false, false, QW_BF16>, read_mxfp4}},
};

// Eight codes from the lowest bits of a word, one a byte: halves, quarters and eighths move apart.
template <int Bits>
uint64_t spread(uint64_t word) {
    constexpr uint64_t kFour = (uint64_t{1} << 4 * Bits) - 1, kTwo = (uint64_t{1} << 2 * Bits) - 1;
    constexpr uint64_t kOne = (uint64_t{1} << Bits) - 1, kHalves = 0x0000000100000001, kQuarters = 0x0001000100010001;
    word = (word & kFour) | (word >> 4 * Bits & kFour) << 32;
    word = (word & kTwo * kHalves) | (word >> 2 * Bits & kTwo * kHalves) << 16;
    return (word & kOne * kQuarters) | (word >> Bits & kOne * kQuarters) << 8;
}

template <int Bits>
void read_bits(const uint8_t* from, int64_t codes, uint8_t* to) {
    for (int64_t i = 0; i < codes; i += 8, from += Bits, to += 8) {
        uint64_t word = 0;
        std::memcpy(&word, from, Bits);
        word = spread<Bits>(word);
        std::memcpy(to, &word, 8);
    }
}

void read_bits(int bits, const uint8_t* from, int64_t codes, uint8_t* to) {
    switch (bits) {
        case 2: return read_bits<2>(from, codes, to);
        case 3: return read_bits<3>(from, codes, to);
        case 4: return read_bits<4>(from, codes, to);
        case 5: return read_bits<5>(from, codes, to);
        case 6: return read_bits<6>(from, codes, to);
        default: std::memcpy(to, from, static_cast<size_t>(codes));
    }
}

bool halves_are_finite(const void* halves, int64_t count) {
    const uint8_t* bytes = static_cast<const uint8_t*>(halves);
    uint32_t worst = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t exponent = bytes[2 * i + 1] & 0x7c;
        worst = exponent > worst ? exponent : worst;
    }
    return worst < 0x7c;
}

}  // namespace

void ArrayRows::read(int64_t row, int64_t first, int64_t blocks, Chunk& chunk) const {
    const qw_weight_type& type = *arrays_.type;
    const int64_t all = num_blocks(type, arrays_.in), parts = parts_of(type);
    const int64_t wide = bits_ ? type.bits : 8, row_codes = all * kBlock;
    const uint8_t* codes = arrays_.codes + (row * row_codes + first * kBlock) * wide / 8;
    read_bits(static_cast<int>(wide), codes, blocks * kBlock, chunk.codes);
    const bool powers = bits_ && type.has_table;
    const int64_t size = type.nested || powers ? 1 : 2, at = (row * all + first) * parts * size;
    const uint8_t* scales = static_cast<const uint8_t*>(arrays_.scales) + at;
    if (powers) {
        for (int64_t i = 0; i < blocks * parts; ++i) put_power(scales[i], chunk.scales + 2 * i);
    } else {
        std::memcpy(chunk.scales, scales, static_cast<size_t>(blocks * parts * size));
    }
    if (type.has_min) {
        const uint8_t* mins = static_cast<const uint8_t*>(arrays_.mins) + at;
        std::memcpy(chunk.mins, mins, static_cast<size_t>(blocks * parts * size));
    }
    if (!type.nested) return;
    const int64_t super = (row * all + first) / kChunkBlocks * 2;
    copy_half(static_cast<const uint8_t*>(arrays_.super_scales) + super, chunk.super_scale);
    if (type.has_min) copy_half(static_cast<const uint8_t*>(arrays_.super_mins) + super, chunk.super_min);
}

const BlockFormat* block_format(int32_t number) {
    for (const Numbered& each : kFormats) {
        if (each.number == number) return &each.format;
    }
    return nullptr;
}

void BlockRows::read(int64_t row, int64_t first, int64_t blocks, Chunk& chunk) const {
    const int64_t before = first * kBlock / format_.numbers, count = blocks * kBlock / format_.numbers;
    format_.read(rows_ + row * row_bytes_ + before * format_.bytes, count, chunk);
}

RowBytes row_bytes(const qw_weight_type& type, int64_t in) {
    const int64_t blocks = num_blocks(type, in), scales = blocks * parts_of(type);
    const int64_t size = type.nested || type.has_table ? 1 : 2, supers = type.nested ? blocks / kChunkBlocks * 2 : 0;
    const bool min = type.has_min;
    return {{blocks * kBlock * type.bits / 8, scales * size, min ? scales * size : 0, supers, min ? supers : 0}};
}

bool are_finite(const qw_codes& arrays, int64_t rows, bool bits) {
    const qw_weight_type& type = *arrays.type;
    const int64_t blocks = rows * num_blocks(type, arrays.in), scales = blocks * parts_of(type);
    if (type.nested) {
        const int64_t supers = blocks / kChunkBlocks;
        return halves_are_finite(arrays.super_scales, supers) && (!type.has_min || halves_are_finite(arrays.super_mins, supers));
    }
    if (bits && type.has_table) return std::memchr(arrays.scales, 0, static_cast<size_t>(scales)) == nullptr;
    if (type.scale_type != QW_BF16) return halves_are_finite(arrays.scales, scales);
    const uint16_t* found = static_cast<const uint16_t*>(arrays.scales);
    return std::all_of(found, found + scales, [](uint16_t each) { return (each & 0x7f80) != 0x7f80; });
}

}  // namespace qwench
