// AMX-INT8: the tile unit multiplies 16 tokens by 16 outputs by a block's depth at once. Only the linear layer over codes.
//
// Whole sums are exact whoever computes them, and what follows is in the order of quantised.h, so a few tokens can go
// another way (AVX512-VNNI's) and get the same bits.
#include "kernels.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__)

#include "kernels/quantised.inl"
#include "tiles.h"

namespace qwench {
namespace {

constexpr int64_t kFewTokens = 4;  // fewer are faster without tiles

// Whole sums [16 tokens][16] of one part of a block.
struct alignas(64) WholeSums {
    int32_t of[kTokenTile][kLanes];
};

// Tiles 0 and 1 hold sums, 2 inputs of `rows` tokens, 3 weights; of one part of a block.
void shape_tiles(int64_t rows, int64_t parts) {
    const int64_t depth = kBlock / parts;
    TileShapes shapes;
    for (int sums = 0; sums < 2; ++sums) shapes.set(sums, rows, kLanes * 4);
    shapes.set(2, rows, depth);
    shapes.set(3, depth / 4, kVectorBytes);
    shapes.load();
}

template <int kParts, bool kMin>
QW_INLINE void multiply_tile(const TileView& tile, const uint8_t* bytes, WholeSums (&whole)[kParts]) {
    constexpr int64_t kDepth = kBlock / kParts;
    _tile_zero(0);
    _tile_loadd(2, tile.numbers, kBlock);
    _tile_loadd(3, bytes, kVectorBytes);
    if constexpr (kMin) {
        _tile_dpbsud(0, 2, 3);
    } else {
        _tile_dpbssd(0, 2, 3);
    }
    _tile_stored(0, whole[0].of, kLanes * 4);
    if constexpr (kParts == 2) {
        _tile_zero(1);
        _tile_loadd(2, tile.numbers + kDepth, kBlock);
        _tile_loadd(3, bytes + kDepth * kLanes, kVectorBytes);
        if constexpr (kMin) {
            _tile_dpbsud(1, 2, 3);
        } else {
            _tile_dpbssd(1, 2, 3);
        }
        _tile_stored(1, whole[1].of, kLanes * 4);
    }
}

// totals[m] += one block's part, for kRows tokens.
template <int kParts, bool kMin, int kRows>
QW_INLINE void add_block(const WholeSums (&whole)[kParts], const Stage& stage, int64_t block, const TileView& tile, V* totals) {
    const float* sums = static_cast<const float*>(tile.corrections);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
        V part = mul(to_float(load_whole(whole[0].of[m])), load(stage.scales[block * kParts]));
        if constexpr (kParts == 2) {
            part = fma(to_float(load_whole(whole[1].of[m])), load(stage.scales[block * kParts + 1]), part);
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

QW_INLINE TileView after(const TileView& tile, int64_t parts) {
    const int32_t* corrections = static_cast<const int32_t*>(tile.corrections) + parts * tile.rows;
    return {tile.numbers + tile.rows * kBlock, tile.scales + tile.rows, corrections, tile.rows};
}

// Totals [rows][16] of one panel += one chunk of it times a whole tile. While the tile unit multiplies a block, the sums of
// the one before are added.
template <int kParts, bool kMin>
void multiply_whole(const ChunkView& chunk, TileView tile, float (*totals)[kLanes]) {
    WholeSums whole[2][kParts];
    V sums[kTokenTile];
#pragma GCC unroll 16
    for (int m = 0; m < kTokenTile; ++m) sums[m] = load(totals[m]);
    multiply_tile<kParts, kMin>(tile, chunk.codes, whole[0]);
    for (int64_t block = 0; block < chunk.blocks; ++block) {
        const TileView next = after(tile, kParts);
        if (block + 1 < chunk.blocks) {
            const uint8_t* bytes = chunk.codes + (block + 1) * kBlockVectors * kVectorBytes;
            multiply_tile<kParts, kMin>(next, bytes, whole[(block + 1) % 2]);
        }
        add_block<kParts, kMin, kTokenTile>(whole[block % 2], *chunk.stage, block, tile, sums);
        tile = next;
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTokenTile; ++m) store(totals[m], sums[m]);
}

// The same for a tile of fewer tokens.
template <int kParts, bool kMin>
void multiply_partly(const ChunkView& chunk, TileView tile, float (*totals)[kLanes]) {
    WholeSums whole[kParts];
    for (int64_t block = 0; block < chunk.blocks; ++block) {
        multiply_tile<kParts, kMin>(tile, chunk.codes + block * kBlockVectors * kVectorBytes, whole);
        TileView row = tile;
        for (int64_t m = 0; m < tile.rows; ++m) {
            V sum = load(totals[m]);
            WholeSums one[kParts];
            for (int p = 0; p < kParts; ++p) store_whole(one[p].of[0], load_whole(whole[p].of[m]));
            add_block<kParts, kMin, 1>(one, *chunk.stage, block, row, &sum);
            store(totals[m], sum);
            ++row.scales;
            row.corrections = static_cast<const int32_t*>(row.corrections) + 1;
        }
        tile = after(tile, kParts);
    }
}

struct TileMultipliers {
    MultiplyChunk whole, partly;
};

template <int kParts, bool kMin>
TileMultipliers multipliers() {
    return {multiply_whole<kParts, kMin>, multiply_partly<kParts, kMin>};
}

TileMultipliers choose_tiles(const qw_weight_type& type) {
    if (parts_of(type) == 1) return type.has_min ? multipliers<1, true>() : multipliers<1, false>();
    return type.has_min ? multipliers<2, true>() : multipliers<2, false>();
}

// One panel's totals [tokens][16] for tokens [first, last), chunk by chunk.
void sum_panel_by_tiles(const CodedJob& job, int64_t panel, int64_t first, int64_t last, float (*totals)[kLanes]) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    const TileMultipliers multiply = choose_tiles(type);
    const int64_t blocks = num_blocks(type, weight.in), whole = first + (last - first) / kTokenTile * kTokenTile;
    Stage stage;
    ChunkView view = {nullptr, &stage, 0, table_bytes(type)};
    const uint8_t* chunk = panel_of(weight, panel);
    for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
        view.blocks = blocks - block < kChunkBlocks ? blocks - block : kChunkBlocks;
        expand_scales(type, chunk, view.blocks, stage);
        const uint8_t* codes = chunk + scale_bytes(type, view.blocks);
        view.codes = type.has_min ? staged<false>(type, codes, view.blocks, view.table, stage)
                                  : staged<true>(type, codes, view.blocks, view.table, stage);
        for (int64_t token = first; token < last; token += kTokenTile) {
            if (token == whole) shape_tiles(last - whole, parts_of(type));
            const TileView tile = view_tile(job.inputs, type, token / kTokenTile, 0, block);
            (token < whole ? multiply.whole : multiply.partly)(view, tile, totals + (token - first));
        }
        if (whole > first && whole < last) shape_tiles(kTokenTile, parts_of(type));
        chunk += chunk_bytes(type, view.blocks);
    }
}

void linear_by_tiles(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    if (last - first < kFewTokens) return linear_codes(job, begin, end, first, last);
    shape_tiles(last - first < kTokenTile ? last - first : kTokenTile, parts_of(*job.arguments->weight->type));
    for_each_panel(job, begin, end, first, last, sum_panel_by_tiles);
    _tile_release();
}

}  // namespace

const CodedKernels* amx_int8_coded() {
    static const CodedKernels kernels = {code_inputs, correct_inputs, linear_by_tiles};
    return &kernels;
}

}  // namespace qwench

#else

namespace qwench {
const CodedKernels* amx_int8_coded() { return nullptr; }
}  // namespace qwench

#endif
