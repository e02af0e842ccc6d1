// Quantised weights into the layout of quantised.h, and single rows back out of it.
#include <algorithm>
#include <cstring>

#include "context.h"
#include "packing.h"
#include "quantised.h"

namespace qwench {

namespace {

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

// One plane of one output's block: the low bits of words of four codes, from place `From` on, several to a word.
template <int From, int Bits, int Vectors>
uint8_t* put_plane(const uint32_t (&words)[kBlockVectors], uint8_t* target) {
    constexpr uint32_t kMask = 0x01010101U * ((1U << Bits) - 1);
    for (int first = 0; first < kBlockVectors; first += Vectors, target += kVectorBytes) {
        uint32_t bits = 0;
        for (int i = 0; i < Vectors; ++i) bits |= (words[first + i] >> From & kMask) << i * Bits;
        std::memcpy(target, &bits, sizeof bits);
    }
    return target;
}

// One output's codes of a block; `target` is its place in the first vector. The planes are those of planes_of.
void put_codes(int bits, const uint8_t* codes, uint8_t* target) {
    uint32_t words[kBlockVectors];
    std::memcpy(words, codes, sizeof words);
    switch (bits) {
        case 2: put_plane<0, 2, 4>(words, target); break;
        case 3: put_plane<2, 1, 8>(words, put_plane<0, 2, 4>(words, target)); break;
        case 4: put_plane<0, 4, 2>(words, target); break;
        case 5: put_plane<4, 1, 8>(words, put_plane<0, 4, 2>(words, target)); break;
        case 6: put_plane<4, 2, 4>(words, put_plane<0, 4, 2>(words, target)); break;
        default: put_plane<0, 8, 1>(words, target);
    }
}

// One output's codes of a vocabulary's block: the upper bits as if they were all, and the lower ones where these lie.
void cut_codes(int lower_bits, const uint8_t* codes, uint8_t* target, uint8_t* lower) {
    uint32_t words[kBlockVectors];
    std::memcpy(words, codes, sizeof words);
    static_assert(kUpperBits == 3, "the planes below are those of three bits");
    if (lower_bits == 2) {
        put_plane<4, 1, 8>(words, put_plane<2, 2, 4>(words, target));
        put_plane<0, 2, 4>(words, lower);
    } else {
        put_plane<5, 1, 8>(words, put_plane<3, 2, 4>(words, target));
        put_plane<2, 1, 8>(words, put_plane<0, 2, 4>(words, lower));
    }
}

// `count` elements of `size` bytes as a column of [count][16].
uint8_t* put_column(const uint8_t* from, int64_t count, int64_t size, int64_t o, uint8_t* target) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(target + (i * kPanel + o) * size, from + i * size, static_cast<size_t>(size));
    return target + count * kPanel * size;
}

// Output `o` of a panel's chunk of `blocks` blocks, of a type as it lies in panels; a vocabulary has lower bits elsewhere.
void put_chunk(const qw_weight_type& type, const Chunk& chunk, int64_t blocks, int64_t o, uint8_t* target, int lower_bits,
               uint8_t* lower) {
    const int64_t scales = blocks * parts_of(type), size = type.nested ? 1 : 2;
    uint8_t* codes = target + scale_bytes(type, blocks) + 4 * o;
    if (type.nested) {
        target = put_column(chunk.super_scale, 1, 2, o, target);
        if (type.has_min) target = put_column(chunk.super_min, 1, 2, o, target);
    }
    target = put_column(chunk.scales, scales, size, o, target);
    if (type.has_min) put_column(chunk.mins, scales, size, o, target);
    for (int64_t block = 0; block < blocks; ++block, codes += code_bytes(type, 1)) {
        if (lower_bits == 0) {
            put_codes(type.bits, chunk.codes + block * kBlock, codes);
        } else {
            cut_codes(lower_bits, chunk.codes + block * kBlock, codes, lower + block * lower_bits * kVectorBytes + 4 * o);
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

// One output's codes of a block.
void take_codes(const Planes& planes, const uint8_t* codes, int64_t o, uint8_t (&found)[kBlock]) {
    uint32_t words[kBlockVectors] = {};
    for (int p = 0; p < planes.count; ++p) {
        const Plane& plane = planes.each[p];
        const uint32_t mask = 0x01010101U * ((1U << plane.bits) - 1);
        for (int j = 0; j < kBlockVectors; ++j) {
            uint32_t bits;
            std::memcpy(&bits, codes + j / plane.vectors * kVectorBytes + 4 * o, sizeof bits);
            words[j] |= (bits >> j % plane.vectors * plane.bits & mask) << plane.from;
        }
        codes += kBlockVectors / plane.vectors * kVectorBytes;
    }
    std::memcpy(found, words, sizeof words);
}

template <class Output>
void unpack_codes_as(const qw_weight& weight, int64_t row, Output* target) {
    const qw_weight_type type = type_in_panels(*weight.type, weight.out);
    const int64_t blocks = num_blocks(type, weight.in), parts = parts_of(type), o = row % kPanel;
    const int lower_bits = weight.type->bits - type.bits;
    const uint8_t *chunk = panel_of(weight, row / kPanel), *lower = lower_bits > 0 ? lower_of(weight, row / kPanel) : nullptr;
    const float factor = factor_of(weight);
    for (int64_t block = 0; block * kBlock < weight.in; ++block) {
        const int64_t within = block % kChunkBlocks, count = std::min(kChunkBlocks, blocks - (block - within));
        uint8_t codes[kBlock];
        take_codes(planes_of(type.bits), chunk + scale_bytes(type, count) + within * code_bytes(type, 1), o, codes);
        if (lower_bits > 0) {
            uint8_t rest[kBlock];
            take_codes(planes_of(lower_bits), lower + block * lower_bits * kVectorBytes, o, rest);
            for (int64_t i = 0; i < kBlock; ++i) codes[i] = static_cast<uint8_t>(codes[i] << lower_bits | rest[i]);
        }
        for (int64_t i = 0; i < std::min(kBlock, weight.in - block * kBlock); i += type.block) {
            const Scale scale = scale_at(type, chunk, count * parts, within * parts + i / type.block, o);
            const float by = scale.scale * factor, min = scale.min * factor;
            for (int64_t j = i; j < std::min(i + type.block, weight.in - block * kBlock); ++j) {
                const float value = static_cast<float>(type.has_table ? type.table[codes[j]] : codes[j] - type.zero);
                const float product = value * by;
                put(target + block * kBlock + j, type.has_min ? product - min : product);
            }
        }
        if (within + 1 == kChunkBlocks) chunk += chunk_bytes(type, count);
    }
}

}  // namespace

void pack_panel(const Target& to, int64_t panel, const StoredRows& rows, int64_t first, int64_t count) {
    const qw_weight_type type = type_in_panels(to.type, to.out);
    const int64_t blocks = num_blocks(type, to.in);
    const int lower_bits = to.type.bits - type.bits;
    uint8_t* target = to.packed + panel_offset(to.type, to.out, to.in, panel);
    uint8_t* lower = lower_bits > 0 ? to.packed + lower_offset(to.type, to.out, to.in, panel) : nullptr;
    if (count < kPanel && lower != nullptr) std::memset(lower, 0, static_cast<size_t>(blocks * lower_bits * kVectorBytes));
    Chunk found;
    for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
        const int64_t length = std::min(kChunkBlocks, blocks - block), size = chunk_bytes(type, length);
        if (count < kPanel) std::memset(target, 0, static_cast<size_t>(size));
        std::memset(target, 0, static_cast<size_t>(scale_bytes(type, length)));
        for (int64_t o = 0; o < count; ++o) {
            rows.read(first + o, block, length, found);
            put_chunk(type, found, length, o, target, lower_bits, lower);
        }
        target += size;
        lower += length * lower_bits * kVectorBytes;
    }
}

void put_lead(float factor, uint8_t* packed) {
    std::memset(packed, 0, kLeadBytes);
    std::memcpy(packed, &factor, sizeof factor);
}

bool is_known(const qw_weight_type& type) {
    if (type.element == QW_F32 || type.element == QW_BF16) return true;
    const bool finer = type.bits == 4 || type.bits == 5 || type.bits == 8;  // so many have scales that are floats
    const bool bits = finer || (type.nested && type.bits >= 2 && type.bits <= 6);
    const bool block = type.block == kBlock || type.block == kBlock / kMaxParts;
    const bool scales = type.scale_type == QW_F16 || type.scale_type == QW_BF16;
    const bool values = type.has_table ? type.bits == 4 : type.zero >= 0 && type.zero <= 128;
    return type.element == QW_CODES && bits && block && scales && values;
}

void unpack_codes(const qw_weight& weight, int64_t row, float* target) { unpack_codes_as(weight, row, target); }
void unpack_codes(const qw_weight& weight, int64_t row, bf16* target) { unpack_codes_as(weight, row, target); }

}  // namespace qwench

using namespace qwench;

int32_t qw_pack_codes(qw_context* context, const qw_codes* codes, void* packed, int64_t out, int64_t first) {
    if (!is_known(*codes->type) || codes->type->element != QW_CODES) return 1;
    const Target target = {*codes->type, out, codes->in, static_cast<uint8_t*>(packed)};
    if (first == 0) put_lead(codes->factor, target.packed);
    const ArrayRows rows(*codes, false);
    context->pool.run(divide_up(codes->out, kPanel), [&](int64_t panel) {
        const int64_t row = panel * kPanel, count = std::min(kPanel, codes->out - row);
        pack_panel(target, first / kPanel + panel, rows, row, count);
    });
    return 0;
}
