// AMX: the tile unit multiplies 16 tokens by 16 outputs by 32 of depth at once. Only the linear layer over BF16.
//
// One token goes through tiles as well (of one row): another instruction would add in another order.
#include "kernels.h"
#include "packed.h"
#include "simd.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__)

#include "kernels/outputs.inl"
#include "tiles.h"

namespace qwench {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kStepsPerTile = kDepthTile / 2;
constexpr int64_t kPrefetchTiles = 2;  // ahead in the weights' stream, in tiles of depth

// Tiles 0 to 3 hold sums, 4 and 5 inputs of `rows` tokens, 6 and 7 weights.
void shape_tiles(int64_t rows) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, tile < 6 ? rows : kTileRows, kTileRowBytes);
    shapes.load();
}

struct TileBlock {
    const char* inputs;       // [token tile][depth tile] of kTileBytes
    int64_t input_stride;     // bytes from token tile to token tile
    const char* const* pieces;  // of the depth, and what is read next
    int64_t panel_offset;     // from there to the first panel
    int64_t step_bytes;       // from step to step
    int64_t depth_tiles, piece_tiles;
};

// Asks for a kilobyte: as much as one tile, so that memory's answers and the tiles' loads alternate.
QW_INLINE void ask(const char* ahead) {
#pragma GCC unroll 16
    for (int line = 0; line < 16; ++line) __builtin_prefetch(ahead + line * 64);
}

// Sums of kTokens token tiles times kPanels panels: (1, 1), (1, 4), (2, 1) or (2, 2), the tiles there are.
template <int kTokens, int kPanels>
void multiply_tiles(const TileBlock& block) {
    constexpr int64_t kPanelBytes = kPanel * kStepBytes;
    const char* inputs = block.inputs;
    const char* weights = nullptr;
    const char* ahead = nullptr;
    const int64_t tile_bytes = kStepsPerTile * block.step_bytes;
    int64_t piece = 0, left = 0;  // tiles of the piece
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t depth = 0; depth < block.depth_tiles; ++depth) {
        if (left == 0) {
            weights = block.pieces[piece++] + block.panel_offset;
            ahead = weights + kPrefetchTiles * tile_bytes;
            left = block.piece_tiles;
        }
        if (left-- == kPrefetchTiles) ahead = block.pieces[piece] + block.panel_offset;
        if constexpr (kPanels == 4) ask(ahead);
        _tile_loadd(4, inputs, kTileRowBytes);
        if constexpr (kTokens == 2) _tile_loadd(5, inputs + block.input_stride, kTileRowBytes);
        _tile_loadd(6, weights, block.step_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (kTokens == 2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (kPanels == 4) ask(ahead + kTileBytes);
        if constexpr (kPanels >= 2) {
            _tile_loadd(7, weights + kPanelBytes, block.step_bytes);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (kTokens == 2) _tile_dpbf16ps(3, 5, 7);
        }
        if constexpr (kPanels == 4) {
            ask(ahead + 2 * kTileBytes);
            _tile_loadd(6, weights + 2 * kPanelBytes, block.step_bytes);
            _tile_dpbf16ps(2, 4, 6);
            ask(ahead + 3 * kTileBytes);
            _tile_loadd(7, weights + 3 * kPanelBytes, block.step_bytes);
            _tile_dpbf16ps(3, 4, 7);
        }
        inputs += kTileBytes;
        weights += tile_bytes;
        ahead += tile_bytes;
    }
}

// Writes `rows` rows of one tile of sums as outputs of one panel, as far as they exist.
template <class Output>
void store_tile(const qw_linear_arguments& a, const float* sums, int64_t token, int64_t rows, int64_t output) {
    for (int64_t row = 0; row < rows && token + row < a.tokens; ++row) {
        store_row<Output>(a, token + row, output, load(sums + row * kPanel));
    }
}

template <int kTokens, int kPanels>
void tile_block(const LinearJob& job, int64_t rows, int64_t group, int64_t panel, int64_t token) {
    const qw_linear_arguments& a = *job.arguments;
    const qw_weight& weight = *a.weight;
    const int64_t depth_tiles = padded_depth(true, weight.in) / kDepthTile;
    TileBlock block;
    block.input_stride = depth_tiles * kTileBytes;
    block.inputs = static_cast<const char*>(job.inputs) + token / kTileRows * block.input_stride;
    block.step_bytes = panels_of(weight.out, group) * kPanel * kStepBytes;
    block.depth_tiles = depth_tiles;
    block.piece_tiles = job.pieces == nullptr ? depth_tiles : job.piece_depth / kDepthTile;
    const char* whole = static_cast<const char*>(weight.packed) + group_offset(true, weight.in, group);
    const char* const in_one[] = {whole, whole + depth_tiles * kStepsPerTile * block.step_bytes};
    block.pieces = job.pieces == nullptr ? in_one : job.pieces;
    block.panel_offset = panel * kPanel * kStepBytes;
    multiply_tiles<kTokens, kPanels>(block);
    alignas(64) float sums[4][kTileRows * kPanel];
    _tile_stored(0, sums[0], kTileRowBytes);
    _tile_stored(1, sums[1], kTileRowBytes);
    _tile_stored(2, sums[2], kTileRowBytes);
    _tile_stored(3, sums[3], kTileRowBytes);
    const int64_t output = group * kGroup + panel * kPanel;
    for (int tile = 0; tile < 4; ++tile) {
        const int64_t tokens_at = kTokens == 2 ? tile / 2 : 0;
        const int64_t panel_at = kTokens == 2 ? tile % 2 : tile;
        if (panel_at >= kPanels) continue;
        const int64_t first = token + tokens_at * kTileRows;
        if (a.type == QW_BF16) {
            store_tile<bf16>(a, sums[tile], first, rows, output + panel_at * kPanel);
        } else {
            store_tile<float>(a, sums[tile], first, rows, output + panel_at * kPanel);
        }
    }
}

void linear_tiles(const LinearJob& job, int64_t group, int64_t first, int64_t last) {
    const int64_t panels = panels_of(job.arguments->weight->out, group);
    const int64_t rows = last - first < kTileRows ? last - first : kTileRows;
    shape_tiles(rows);
    for (int64_t token = first; token < last; token += 2 * kTileRows) {
        const bool two = last - token > kTileRows;
        if (!two && panels == 4) {
            tile_block<1, 4>(job, rows, group, 0, token);
            continue;
        }
        int64_t panel = 0;
        for (; two && panel + 2 <= panels; panel += 2) tile_block<2, 2>(job, rows, group, panel, token);
        for (; panel < panels; ++panel) {
            if (two) {
                tile_block<2, 1>(job, rows, group, panel, token);
            } else {
                tile_block<1, 1>(job, rows, group, panel, token);
            }
        }
    }
    _tile_release();
}

}  // namespace

LinearKernel amx_bf16_linear() { return linear_tiles; }

}  // namespace qwench

#else

namespace qwench {
LinearKernel amx_bf16_linear() { return nullptr; }
}  // namespace qwench

#endif
