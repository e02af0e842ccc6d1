// Quantised weights into the layout of quantised.h, and single rows back out of it.
#include <algorithm>
#include <cstring>

#include "context.h"
#include "packing.h"
#include "quantised.h"

namespace qwench {

namespace {

constexpr int64_t kBlockBytes = kBlockVectors * kVectorBytes;  // of one block's codes, one a byte

// A plane of bits: the codes' `bits` bits from `from` on, of `vectors` vectors in one.
struct Plane {
    int from, bits, vectors;
};

// The planes of a code, in the order in which they are stored.
struct Planes {
    Plane each[2];
    int count;
};

Planes planes_of(int bits) {
    switch (bits) {
        case 2: return {{{0, 2, 4}}, 1};
        case 3: return {{{0, 2, 4}, {2, 1, 8}}, 2};
        case 4: return {{{0, 4, 2}}, 1};
        case 5: return {{{0, 4, 2}, {4, 1, 8}}, 2};
        case 6: return {{{0, 4, 2}, {4, 2, 4}}, 2};
        default: return {{{0, 8, 1}}, 1};
    }
}

void pack_block(const uint8_t (&codes)[kBlockBytes], const Planes& planes, uint8_t* target) {
    for (int p = 0; p < planes.count; ++p) {
        const Plane& plane = planes.each[p];
        for (int first = 0; first < kBlockVectors; first += plane.vectors, target += kVectorBytes) {
            uint8_t bytes[kVectorBytes] = {};
            for (int i = 0; i < plane.vectors; ++i) {
                const uint8_t* from = codes + (first + i) * kVectorBytes;
                for (int b = 0; b < kVectorBytes; ++b) {
                    const int kept = from[b] >> plane.from & ((1 << plane.bits) - 1);
                    bytes[b] = static_cast<uint8_t>(bytes[b] | kept << (i * plane.bits));
                }
            }
            std::memcpy(target, bytes, sizeof bytes);
        }
    }
}

// The codes of one block of a panel, transposed: byte 4 * o + i of vector j is output o's at depth 4 * j + i.
void gather_block(const qw_codes& source, int64_t panel, int64_t depth, int64_t block, uint8_t (&codes)[kBlockBytes]) {
    std::memset(codes, 0, sizeof codes);
    for (int64_t o = 0; o < kPanel && panel * kPanel + o < source.out; ++o) {
        const uint8_t* from = source.codes + (panel * kPanel + o) * depth + block * kBlock;
        for (int64_t j = 0; j < kBlockVectors; ++j) std::memcpy(codes + j * kVectorBytes + 4 * o, from + 4 * j, 4);
    }
}

// `count` columns from `first` on of a matrix [out, columns] of elements of `size` bytes -> [count][16].
void gather_columns(const void* matrix, int64_t size, int64_t columns, const qw_codes& source, int64_t panel,
                    int64_t first, int64_t count, uint8_t* target) {
    for (int64_t o = 0; o < kPanel && panel * kPanel + o < source.out; ++o) {
        const char* from = static_cast<const char*>(matrix) + ((panel * kPanel + o) * columns + first) * size;
        for (int64_t i = 0; i < count; ++i) {
            std::memcpy(target + (i * kPanel + o) * size, from + i * size, static_cast<size_t>(size));
        }
    }
}

void pack_scales(const qw_codes& source, int64_t panel, int64_t block, int64_t blocks, uint8_t* target) {
    const qw_weight_type& type = *source.type;
    const int64_t parts = parts_of(type), all = num_blocks(type, source.in) * parts, count = blocks * parts;
    const int64_t size = type.nested ? 1 : 2;
    std::memset(target, 0, static_cast<size_t>(scale_bytes(type, blocks)));
    if (type.nested) {
        const int64_t supers = all / parts / kChunkBlocks, super = block / kChunkBlocks;
        for (const void* each : {source.super_scales, source.super_mins}) {
            if (each == source.super_mins && !type.has_min) continue;
            gather_columns(each, 2, supers, source, panel, super, 1, target);
            target += 2 * kPanel;
        }
    }
    gather_columns(source.scales, size, all, source, panel, block * parts, count, target);
    target += count * kPanel * size;
    if (type.has_min) gather_columns(source.mins, size, all, source, panel, block * parts, count, target);
}

void pack_panel(const qw_codes& source, int64_t panel, uint8_t* target) {
    const qw_weight_type& type = *source.type;
    const int64_t blocks = num_blocks(type, source.in);
    const Planes planes = planes_of(type.bits);
    for (int64_t chunk = 0; chunk < blocks; chunk += kChunkBlocks) {
        const int64_t count = std::min(kChunkBlocks, blocks - chunk);
        pack_scales(source, panel, chunk, count, target);
        target += scale_bytes(type, count);
        for (int64_t block = chunk; block < chunk + count; ++block, target += code_bytes(type, 1)) {
            uint8_t codes[kBlockBytes];
            gather_block(source, panel, blocks * kBlock, block, codes);
            pack_block(codes, planes, target);
        }
    }
}

float scale_value(const qw_weight_type& type, const uint8_t* from) {
    uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return type.scale_type == QW_BF16 ? widen(bf16{bits}) : from_half(bits);
}

// One output's scale and min of one part of a chunk's block.
struct Scale {
    float scale, min;
};

Scale scale_at(const qw_weight_type& type, const uint8_t* chunk, int64_t count, int64_t part, int64_t o) {
    const int64_t at = part * kPanel + o, after = count * kPanel;
    if (!type.nested) {
        return {scale_value(type, chunk + at * 2), type.has_min ? scale_value(type, chunk + (after + at) * 2) : 0.0f};
    }
    const uint8_t* bytes = chunk + floats_of(type) * kPanel * 2;
    const float scale = static_cast<float>(static_cast<int8_t>(bytes[at])) * scale_value(type, chunk + o * 2);
    if (!type.has_min) return {scale, 0.0f};
    return {scale, static_cast<float>(bytes[after + at]) * scale_value(type, chunk + (kPanel + o) * 2)};
}

int code_at(const Planes& planes, const uint8_t* codes, int64_t o, int64_t depth) {
    const int64_t vector = depth / 4, byte = 4 * o + depth % 4;
    int code = 0;
    for (int p = 0; p < planes.count; ++p) {
        const Plane& plane = planes.each[p];
        const int bits = codes[vector / plane.vectors * kVectorBytes + byte] >> (vector % plane.vectors * plane.bits);
        code |= (bits & ((1 << plane.bits) - 1)) << plane.from;
        codes += kBlockVectors / plane.vectors * kVectorBytes;
    }
    return code;
}

template <class Output>
void unpack_codes_as(const qw_weight& weight, int64_t row, Output* target) {
    const qw_weight_type& type = *weight.type;
    const int64_t blocks = num_blocks(type, weight.in), parts = parts_of(type), o = row % kPanel;
    const uint8_t* chunk = panel_of(weight, row / kPanel);
    const float factor = factor_of(weight);
    const Planes planes = planes_of(type.bits);
    for (int64_t i = 0; i < weight.in; ++i) {
        const int64_t left = blocks - i / QW_SUPER_BLOCK * kChunkBlocks, count = std::min(kChunkBlocks, left);
        const int64_t block = i / kBlock % kChunkBlocks, part = i / type.block % (kChunkBlocks * parts);
        const uint8_t* codes = chunk + scale_bytes(type, count) + block * code_bytes(type, 1);
        const int code = code_at(planes, codes, o, i % kBlock);
        const Scale scale = scale_at(type, chunk, count * parts, part, o);
        const float value = static_cast<float>(type.has_table ? type.table[code] : code - type.zero);
        const float product = value * (scale.scale * factor);
        put(target + i, type.has_min ? product - scale.min * factor : product);
        if ((i + 1) % QW_SUPER_BLOCK == 0) chunk += chunk_bytes(type, count);
    }
}

}  // namespace

bool is_known(const qw_weight_type& type) {
    if (type.element == QW_F32 || type.element == QW_BF16) return true;
    const bool bits = (type.bits >= 2 && type.bits <= 6) || type.bits == 8;
    const bool block = type.block == kBlock || type.block == kBlock / kMaxParts;
    const bool scales = type.scale_type == QW_F16 || type.scale_type == QW_BF16;
    const bool values = type.has_table ? type.bits == 4 : type.zero >= 0 && type.zero <= 128;
    return type.element == QW_CODES && bits && block && scales && values;
}

void unpack_codes(const qw_weight& weight, int64_t row, float* target) { unpack_codes_as(weight, row, target); }
void unpack_codes(const qw_weight& weight, int64_t row, bf16* target) { unpack_codes_as(weight, row, target); }

}  // namespace qwench

using namespace qwench;

int32_t qw_pack_codes(qw_context* context, const qw_codes* codes, void* packed) {
    const qw_weight_type& type = *codes->type;
    if (!is_known(type) || type.element != QW_CODES) return 1;
    uint8_t* target = static_cast<uint8_t*>(packed);
    std::memset(target, 0, kLeadBytes);
    std::memcpy(target, &codes->factor, sizeof codes->factor);
    const int64_t size = panel_bytes(type, codes->in);
    context->pool.run(divide_up(codes->out, kPanel), [&](int64_t panel) {
        pack_panel(*codes, panel, target + kLeadBytes + panel * size);
    });
    return 0;
}
