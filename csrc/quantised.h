// How quantised weights and the inputs they meet lie in memory, and the one order in which they are multiplied.
//
// Weights: a cache line with the factor, then panels of 16 outputs, each one stream: chunk after chunk of 256 of depth
// (the last may be shorter, a multiple of 32). A chunk holds its scales and mins, then its codes, both whole cache lines.
//   scales, nested:  16 super-scales [and 16 super-mins], scale bytes [block][part][16] [and min bytes the same]
//   scales, else:    scales [block][part][16] of 16 bits [and mins the same]
//   codes:           [block] of 8 vectors; byte 4 * o + i of vector j is the code of output o at depth 4 * j + i. They
//                    are cut into planes of bits: the low 4 of two vectors share a vector, the low 2 of four, and above
//                    them the high 2 of four or the high 1 of eight.
// A block is 32 of depth; types whose scales are for 16 have two parts in one. Factor, zero and table belong to the type.
//
// A vocabulary's panels hold the upper kUpperBits of every code, as if they were all of it. The lower bits lie behind the
// last panel, panel after panel: blocks of vectors as above, of codes of so many bits, and nothing beside them. An output
// of the upper bits alone has the middle of the lower bits' range in their place: the whole number below it or the one above
// it, as depth and output are together even or odd.
//
// The sum of an output, which every kernel computes in this order, whatever is computed beside it. Types whose scales are
// floats meet inputs with a scale for every block:
//   whole_p = sum over the part of (code - zero) * number              exact, in 32 bits; codes from 0 where there are mins
//   part    = whole_0 * scale_0; part = fma(whole_1, scale_1, part)    the second where there are two parts
//   part    = fma(-min_p, sum of the part's numbers, part)             for each part, where there are mins
//   total   = fma(part, input scale, total)
// Where there are mins, -min_p is fma(-zero, scale_p, -min), mostly with zero 0. Nested types meet inputs with one scale for
// a super-block, so that all of it is a whole number in 32 bits, whatever takes it apart:
//   whole   = sum over parts of scale_p * (sum over the part of (code - zero) * number)
//   lows    = sum over parts of min_p * (sum of the part's numbers)    where there are mins
//   part    = whole * super-scale; part = fma(-super-min, lows, part)  of whole and lows as fp32
//   total   = fma(part, input scale, total)
// and in the end total * factor.
//
// Inputs: tiles of 16 tokens (the last of fewer), within them block by block the numbers [row][32], or super-block by
// super-block [row][256].
#pragma once

#include <cstdint>

#include "include/qwench.h"
#include "packed.h"

namespace qwench {

constexpr int64_t kBlock = 32;        // of depth
constexpr int64_t kChunkBlocks = QW_SUPER_BLOCK / kBlock;
constexpr int64_t kVectorBytes = 64;  // 16 outputs, 4 of depth
constexpr int64_t kBlockVectors = 8;
constexpr int64_t kMaxParts = 2;
constexpr int64_t kTokenTile = 16;    // tokens of one tile
constexpr int64_t kLeadBytes = 64;    // before the first panel: the factor

static inline int64_t parts_of(const qw_weight_type& type) { return kBlock / type.block; }
static inline int64_t floats_of(const qw_weight_type& type) { return type.has_min ? 2 : 1; }

// Blocks of depth that are stored for `in` elements.
static inline int64_t num_blocks(const qw_weight_type& type, int64_t in) {
    return type.nested ? round_up(in, QW_SUPER_BLOCK) / kBlock : divide_up(in, kBlock);
}

static inline int64_t scale_bytes(const qw_weight_type& type, int64_t blocks) {
    const int64_t each = blocks * parts_of(type) * floats_of(type) * kPanel;
    return round_up(type.nested ? floats_of(type) * kPanel * 2 + each : each * 2, kVectorBytes);
}

static inline int64_t code_bytes(const qw_weight_type& type, int64_t blocks) { return blocks * kVectorBytes * type.bits; }

static inline int64_t chunk_bytes(const qw_weight_type& type, int64_t blocks) {
    return scale_bytes(type, blocks) + code_bytes(type, blocks);
}

constexpr int kUpperBits = QW_UPPER_BITS;

static inline bool is_vocabulary(const qw_weight_type& type, int64_t out) {
    return type.nested && !type.has_table && (type.bits == 5 || type.bits == 6) && out >= QW_VOCABULARY;
}

// The type of what panels hold.
static inline qw_weight_type type_in_panels(const qw_weight_type& type, int64_t out) {
    qw_weight_type upper = type;
    if (is_vocabulary(type, out)) upper.bits = kUpperBits;
    return upper;
}

static inline int64_t panel_bytes(const qw_weight_type& type, int64_t in) {
    const int64_t blocks = num_blocks(type, in), rest = blocks % kChunkBlocks;
    return blocks / kChunkBlocks * chunk_bytes(type, kChunkBlocks) + (rest ? chunk_bytes(type, rest) : 0);
}

static inline int64_t quantised_bytes(const qw_weight_type& type, int64_t out, int64_t in) {
    return kLeadBytes + divide_up(out, kPanel) * panel_bytes(type, in);
}

// Bytes from the beginning of a packed [out, in] to a panel, and to the lower bits of one of a vocabulary.
static inline int64_t panel_offset(const qw_weight_type& type, int64_t out, int64_t in, int64_t panel) {
    return kLeadBytes + panel * panel_bytes(type_in_panels(type, out), in);
}
static inline int64_t lower_offset(const qw_weight_type& type, int64_t out, int64_t in, int64_t panel) {
    const int64_t each = num_blocks(type, in) * kVectorBytes * (type.bits - kUpperBits);
    return panel_offset(type, out, in, divide_up(out, kPanel)) + panel * each;
}

static inline const uint8_t* panel_of(const qw_weight& weight, int64_t panel) {
    return static_cast<const uint8_t*>(weight.packed) + panel_offset(*weight.type, weight.out, weight.in, panel);
}
static inline const uint8_t* lower_of(const qw_weight& weight, int64_t panel) {
    return static_cast<const uint8_t*>(weight.packed) + lower_offset(*weight.type, weight.out, weight.in, panel);
}

static inline float factor_of(const qw_weight& weight) { return *static_cast<const float*>(weight.packed); }

static inline int32_t table_minimum(const qw_weight_type& type) {
    int32_t least = type.table[0];
    for (int8_t value : type.table) least = value < least ? value : least;
    return least;
}

// Codes reach the multiplication as bytes from 0; this is the byte that stands for zero.
static inline int32_t zero_of(const qw_weight_type& type) { return type.has_table ? -table_minimum(type) : type.zero; }

// Inputs rounded to 8 bits. The depth is padded with zeros to whole chunks, so that all types of a kind can share them.
struct CodedInputs {
    int64_t tokens, blocks;
    int8_t* numbers;  // [tile][block][row][32]; nested [tile][super-block][row][256]
    float* scales;    // [tile][block][row];     nested [tile][super-block][row]
    int32_t* sums;    // [tile][block][2][row], of each half of a block; not nested
    // What one weight type makes of the sums, [tile][block][part][row]: without mins int32, what a whole sum starts from so
    // that codes may count from 0; with mins fp32. Not nested.
    void* corrections;
    int16_t* words;   // nested [tile][super-block][row][24]: sums of 16 halves of blocks, then of 8 blocks
    int32_t* starts;  // nested [tile][super-block][row][part]: as above; none where one weight type's codes count from 0
    int64_t parts;    // of a block in that type
};

constexpr int64_t kSumWords = 24;

static inline int64_t coded_blocks(int64_t in) { return round_up(in, QW_SUPER_BLOCK) / kBlock; }

// Of numbers, scales and sums; and of the corrections. Tiles are read whole, so nested inputs have room for one behind them.
static inline int64_t coded_bytes(const qw_weight_type& type, int64_t tokens, int64_t in) {
    constexpr int64_t kEach = kBlock + sizeof(float) + 2 * sizeof(int32_t);
    constexpr int64_t kNested = QW_SUPER_BLOCK + sizeof(float) + kSumWords * sizeof(int16_t);
    if (type.nested) return round_up(tokens * coded_blocks(in) / kChunkBlocks * kNested + kTokenTile * QW_SUPER_BLOCK, kVectorBytes);
    return round_up(tokens * coded_blocks(in) * kEach, kVectorBytes);
}
static inline int64_t correction_bytes(const qw_weight_type& type, int64_t tokens, int64_t in) {
    if (type.nested && zero_of(type) == 0) return 0;
    return round_up(tokens * coded_blocks(in) * parts_of(type) * static_cast<int64_t>(sizeof(float)), kVectorBytes);
}

static inline CodedInputs coded_inputs(const qw_weight_type& type, void* memory, void* corrections, int64_t tokens, int64_t in) {
    CodedInputs inputs = {};
    inputs.tokens = tokens;
    inputs.blocks = coded_blocks(in);
    inputs.numbers = static_cast<int8_t*>(memory);
    inputs.scales = reinterpret_cast<float*>(inputs.numbers + tokens * inputs.blocks * kBlock);
    inputs.corrections = corrections;
    inputs.parts = parts_of(type);
    if (type.nested) {
        inputs.starts = zero_of(type) == 0 ? nullptr : static_cast<int32_t*>(corrections);
        inputs.words = reinterpret_cast<int16_t*>(inputs.scales + tokens * inputs.blocks / kChunkBlocks);
    } else {
        inputs.sums = reinterpret_cast<int32_t*>(inputs.scales + tokens * inputs.blocks);
    }
    return inputs;
}

static inline int64_t tile_rows(const CodedInputs& inputs, int64_t tile) {
    const int64_t left = inputs.tokens - tile * kTokenTile;
    return left < kTokenTile ? left : kTokenTile;
}

// Blocks of single rows before one block of a tile.
static inline int64_t rows_before(const CodedInputs& inputs, int64_t tile, int64_t block) {
    return tile * kTokenTile * inputs.blocks + block * tile_rows(inputs, tile);
}

}  // namespace qwench
