// AMX-INT8: the tile unit multiplies 16 tokens by 16 outputs by a block's depth at once. Only the linear layer over codes;
// of nested ones it multiplies whole super-blocks (nested_tiles.inl).
//
// Whole sums are exact whoever computes them, and what follows is in the order of quantised.h, so a few tokens can go
// another way (AVX512-VNNI's) and get the same bits.
#include "kernels.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__)

#include "kernels/nested.inl"
#include "tiles.h"

namespace qwench {
namespace {

constexpr int64_t kFewTokens = 16, kFewNested = 13;  // fewer are faster without tiles

// Whole sums [16 tokens][16] of one part of a block.
struct alignas(64) WholeSums {
    int32_t of[kTokenTile][kLanes];
};

// Tiles 0 and 1 hold sums, 2 and 3 inputs of `rows` tokens, 4 and 5 weights; of one part of a block.
void shape_tiles(int64_t rows, int64_t parts) {
    const int64_t depth = kBlock / parts;
    TileShapes shapes;
    for (int i = 0; i < 2; ++i) {
        shapes.set(i, rows, kLanes * 4);
        shapes.set(2 + i, rows, depth);
        shapes.set(4 + i, depth / 4, kVectorBytes);
    }
    shapes.load();
}

// The intrinsics take the numbers of tiles literally.
#define QW_MULTIPLY_TILES(sums, inputs, weights)                       \
    _tile_zero(sums);                                                  \
    _tile_loadd(inputs, numbers, kBlock);                              \
    _tile_loadd(weights, bytes, kVectorBytes);                         \
    if constexpr (kMin) {                                              \
        _tile_dpbsud(sums, inputs, weights);                           \
    } else {                                                           \
        _tile_dpbssd(sums, inputs, weights);                           \
    }                                                                  \
    _tile_stored(sums, whole.of, kLanes * 4)

// One part of a block of one panel times one tile. Two sets of registers take turns.
template <int kSet, bool kMin>
QW_INLINE void multiply_part_of_tile(const int8_t* numbers, const uint8_t* bytes, WholeSums& whole) {
    if constexpr (kSet == 0) {
        QW_MULTIPLY_TILES(0, 2, 4);
    } else {
        QW_MULTIPLY_TILES(1, 3, 5);
    }
}

template <int kParts, bool kMin>
QW_INLINE void multiply_tile(const TileView& tile, int64_t block, const uint8_t* bytes, WholeSums (&whole)[kParts]) {
    const int8_t* numbers = tile.numbers + block * tile.rows * kBlock;
    bytes += block * kBlockVectors * kVectorBytes;
    if constexpr (kParts == 2) {
        multiply_part_of_tile<0, kMin>(numbers, bytes, whole[0]);
        multiply_part_of_tile<1, kMin>(numbers + kBlock / 2, bytes + kBlockVectors / 2 * kVectorBytes, whole[1]);
    } else if (block % 2 == 0) {
        multiply_part_of_tile<0, kMin>(numbers, bytes, whole[0]);
    } else {
        multiply_part_of_tile<1, kMin>(numbers, bytes, whole[0]);
    }
}

// totals[m] += one block's part, for kRows tokens whose whole sums begin at row `first`.
template <int kParts, bool kMin, int kRows>
QW_INLINE void add_block(const WholeSums (&whole)[kParts], const Stage& stage, int64_t block, const TileView& tile,
                         V* totals, int64_t first = 0) {
    const float* sums = static_cast<const float*>(tile.corrections);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
        V part = mul(to_float(load_whole(whole[0].of[first + m])), load(stage.scales[block * kParts]));
        if constexpr (kParts == 2) {
            part = fma(to_float(load_whole(whole[1].of[first + m])), load(stage.scales[block * kParts + 1]), part);
        }
        if constexpr (kMin) {
            part = fma(load(stage.minus_mins[block * kParts]), all(sums[m]), part);
            if constexpr (kParts == 2) {
                part = fma(load(stage.minus_mins[block * kParts + 1]), all(sums[tile.rows + m]), part);
            }
        }
        totals[m] = fma(part, all(tile.scales[m]), totals[m]);
    }
}

// The tile one block on.
QW_INLINE TileView after(const TileView& tile, int64_t parts) {
    const int32_t* corrections = static_cast<const int32_t*>(tile.corrections) + parts * tile.rows;
    return {tile.numbers + tile.rows * kBlock, tile.scales + tile.rows, corrections, tile.rows};
}

// Totals [16][16] of one panel += one chunk of it times one tile, whose whole sums are there. Meanwhile the tile unit
// multiplies the next tile, if there is one: its results come late.
template <int kParts, bool kMin>
QW_INLINE void add_tile(const ChunkView& chunk, TileView tile, const WholeSums (*whole)[kParts], const TileView* next,
                        WholeSums (*next_whole)[kParts], float (*totals)[kLanes]) {
    V sums[kTokenTile];
#pragma GCC unroll 16
    for (int m = 0; m < kTokenTile; ++m) sums[m] = load(totals[m]);
    for (int64_t block = 0; block < chunk.blocks; ++block) {
        if (next != nullptr) multiply_tile<kParts, kMin>(*next, block, chunk.codes, next_whole[block]);
        add_block<kParts, kMin, kTokenTile>(whole[block], *chunk.stage, block, tile, sums);
        tile = after(tile, kParts);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTokenTile; ++m) store(totals[m], sums[m]);
}

// Totals of one panel += one chunk of it times `count` whole tiles from `first` on.
template <int kParts, bool kMin>
void multiply_whole(const ChunkView& chunk, const CodedJob& job, int64_t block, int64_t first, int64_t count,
                    float (*totals)[kLanes]) {
    const qw_weight_type& type = *job.arguments->weight->type;
    // Two tiles' sums, a block's room between them: what is read must not lie 4096 bytes from what is being written, or the
    // processor takes the one for the other.
    WholeSums room[2 * kChunkBlocks + 1][kParts];
    WholeSums(*whole[2])[kParts] = {room, room + kChunkBlocks + 1};
    TileView tile = view_tile(job.inputs, type, first, 0, block);
    for (int64_t i = 0; i < chunk.blocks; ++i) multiply_tile<kParts, kMin>(tile, i, chunk.codes, whole[0][i]);
    for (int64_t i = 0; i < count; ++i) {
        const bool more = i + 1 < count;
        const TileView next = more ? view_tile(job.inputs, type, first + i + 1, 0, block) : tile;
        add_tile<kParts, kMin>(chunk, tile, whole[i % 2], more ? &next : nullptr, whole[(i + 1) % 2], totals);
        totals += kTokenTile;
        tile = next;
    }
}

// The same for one tile of fewer tokens.
template <int kParts, bool kMin>
void multiply_partly(const ChunkView& chunk, TileView tile, float (*totals)[kLanes]) {
    WholeSums whole[kChunkBlocks][kParts];
    for (int64_t block = 0; block < chunk.blocks; ++block) {
        multiply_tile<kParts, kMin>(tile, block, chunk.codes, whole[block]);
    }
    for (int64_t m = 0; m < tile.rows; ++m) {
        V sum = load(totals[m]);
        TileView row = {tile.numbers, tile.scales + m, static_cast<const int32_t*>(tile.corrections) + m, tile.rows};
        for (int64_t block = 0; block < chunk.blocks; ++block) {
            add_block<kParts, kMin, 1>(whole[block], *chunk.stage, block, row, &sum, m);
            row = after(row, kParts);
        }
        store(totals[m], sum);
    }
}

struct TileMultipliers {
    void (*whole)(const ChunkView&, const CodedJob&, int64_t block, int64_t first, int64_t count, float (*)[kLanes]);
    MultiplyChunk partly;
};

template <int kParts, bool kMin>
TileMultipliers multipliers() {
    return {multiply_whole<kParts, kMin>, multiply_partly<kParts, kMin>};
}

TileMultipliers choose_tiles(const qw_weight_type& type) {
    if (parts_of(type) == 1) return type.has_min ? multipliers<1, true>() : multipliers<1, false>();
    return type.has_min ? multipliers<2, true>() : multipliers<2, false>();
}

// One panel's totals [tokens][16] for tokens [first, last), chunk by chunk. `view` has the type's table.
void sum_panel_by_tiles(const CodedJob& job, int64_t panel, int64_t first, int64_t last, ChunkView view, Stage& stage,
                        float (*totals)[kLanes]) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    const TileMultipliers multiply = choose_tiles(type);
    const int64_t blocks = num_blocks(type, weight.in), whole = first + (last - first) / kTokenTile * kTokenTile;
    const uint8_t* chunk = panel_of(weight, panel);
    for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
        view.blocks = blocks - block < kChunkBlocks ? blocks - block : kChunkBlocks;
        expand_scales(type, chunk, view.blocks, stage);
        const uint8_t* codes = chunk + scale_bytes(type, view.blocks);
        view.codes = type.has_min ? staged<false>(type, codes, view.blocks, view.table, stage.bytes)
                                  : staged<true>(type, codes, view.blocks, view.table, stage.bytes);
        asm volatile("" : : : "memory");  // the intrinsics do not say that tiles are loaded from memory
        if (whole > first) {
            multiply.whole(view, job, block, first / kTokenTile, (whole - first) / kTokenTile, totals);
        }
        if (whole < last) {
            if (whole > first) shape_tiles(last - whole, parts_of(type));
            multiply.partly(view, view_tile(job.inputs, type, whole / kTokenTile, 0, block), totals + (whole - first));
            if (whole > first) shape_tiles(kTokenTile, parts_of(type));
        }
        chunk += chunk_bytes(type, view.blocks);
    }
}

void linear_by_tiles(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    if (last - first < kFewTokens) return linear_codes(job, begin, end, first, last);
    shape_tiles(last - first < kTokenTile ? last - first : kTokenTile, parts_of(*job.arguments->weight->type));
    Stage stage;
    const ChunkView view = {nullptr, &stage, 0, table_bytes(*job.arguments->weight->type)};
    for_each_panel(job, begin, end, first, last, [&](int64_t panel, float (*totals)[kLanes]) {
        sum_panel_by_tiles(job, panel, first, last, view, stage, totals);
    });
    _tile_release();
}

}  // namespace
}  // namespace qwench

#include "kernels/nested_tiles.inl"

namespace qwench {

const CodedPair* amx_int8_coded() {
    static const CodedPair kernels = [] {
        CodedPair pair = coded_pair();
        pair.plain.linear = linear_by_tiles;
        pair.nested.linear = nested_by_tiles;
        return pair;
    }();
    return &kernels;
}

}  // namespace qwench

#else

namespace qwench {
const CodedPair* amx_int8_coded() { return nullptr; }
}  // namespace qwench

#endif
