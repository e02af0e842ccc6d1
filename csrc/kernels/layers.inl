// A vision tower's layer over codes that are bytes with one scale for a block, in the order that quantised.h states: a
// panel's sums become outputs, whatever is still done to them, while they are near. Included once per instruction set, after
// nested.inl.

#include "powers.inl"

namespace qwench {
namespace {

template <class Output, bool kGelu>
void finish_panel(const qw_layer_arguments& a, int64_t panel, int64_t first, int64_t count, const float (*totals)[kLanes]) {
    const int64_t output = panel * kPanel, left = a.weight->out - output;
    const V factor = all(factor_of(*a.weight)), bias = load_some(static_cast<const Output*>(a.bias) + output, left);
    Output* y = static_cast<Output*>(a.y) + first * a.y_stride + output;
    const Output* residual = static_cast<const Output*>(a.residual);
    if (residual != nullptr) residual += first * a.residual_stride + output;
    for (int64_t row = 0; row < count; ++row) {
        V sums = add(bias, rounded<Output>(mul(load(totals[row]), factor)));
        if constexpr (kGelu) sums = gelu<std::is_same_v<Output, bf16>>(rounded<Output>(sums));
        if (residual != nullptr) sums = add(load_some(residual + row * a.residual_stride, left), rounded<Output>(sums));
        store_some(y + row * a.y_stride, sums, left);
    }
}

template <class Output>
void finish_panel(const qw_layer_arguments& a, int64_t panel, int64_t first, int64_t count, const float (*totals)[kLanes]) {
    a.gelu ? finish_panel<Output, true>(a, panel, first, count, totals)
           : finish_panel<Output, false>(a, panel, first, count, totals);
}

// Some blocks of one token's inputs.
template <class Input>
void round_row(const Input* x, int64_t in, int64_t blocks, int64_t row, int32_t zero_code, LayerBlock* to) {
    for (int64_t block = 0; block < blocks; ++block, ++to, x += kBlock, in -= kBlock) {
        const Halves halves = round_block(x, in, to->numbers[row]);
        to->starts[row] = -zero_code * sum(add(halves.low, halves.high));
        to->scales[row] = halves.scale;
    }
}

void round_tile(const LayerJob& job, int64_t tile) {
    const qw_layer_arguments& a = *job.arguments;
    const int64_t left = a.tokens - tile * kLayerRows, count = left < kLayerRows ? left : kLayerRows;
    const int32_t zero_code = zero_of(*a.weight->type);
    LayerBlock* to = job.inputs + tile * job.blocks;
    if (count < kLayerRows) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(job.blocks) * sizeof(LayerBlock));
    for (int64_t block = 0; block < job.blocks; block += kChunkBlocks, to += kChunkBlocks) {  // what the first cache holds
        const int64_t here = job.blocks - block < kChunkBlocks ? job.blocks - block : kChunkBlocks;
        for (int64_t row = 0; row < count; ++row) {
            const int64_t at = (tile * kLayerRows + row) * a.x_stride + block * kBlock, in = a.weight->in - block * kBlock;
            if (a.type == QW_BF16) {
                round_row(static_cast<const bf16*>(a.x) + at, in, here, row, zero_code, to);
            } else {
                round_row(static_cast<const float*>(a.x) + at, in, here, row, zero_code, to);
            }
        }
    }
}

// Sums [rows][16] of kRows tokens from `row` of a tile on, which stay in registers with what a block adds to them.
template <int kRows>
QW_INLINE void multiply_rows(const qw_weight_type& type, const uint8_t* panel, int64_t blocks, const LayerBlock* x,
                             int64_t row, float (*totals)[kLanes]) {
    V sums[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) sums[m] = zero();
    const uint8_t *codes = panel, *scales = panel;
    for (int64_t block = 0; block < blocks; ++block, ++x, codes += kBlockVectors * kVectorBytes, scales += kPanel * 2) {
        if (block % kChunkBlocks == 0) {  // a chunk's scales lie in front of its codes
            const int64_t left = blocks - block;
            scales = codes;
            codes += scale_bytes(type, left < kChunkBlocks ? left : kChunkBlocks);
        }
        I whole[kRows];
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) whole[m] = all_whole(x->starts[row + m]);
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) {
            const B bytes = load_bytes(codes + j * kVectorBytes);
#pragma GCC unroll 16
            for (int m = 0; m < kRows; ++m) whole[m] = multiply_add<true>(whole[m], bytes, x->numbers[row + m] + j * 4);
        }
        const V scale = load_scales(type.scale_type, scales);
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
            sums[m] = fma_exact(mul(to_float(whole[m]), scale), all(x->scales[row + m]), sums[m]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) store(totals[row + m], sums[m]);
}

// Totals [kLayerRows][16] of a tile, of which `count` tokens are there.
void multiply_tile(const qw_weight_type& type, const uint8_t* panel, int64_t blocks, const LayerBlock* x, int64_t count,
                   float (*totals)[kLanes]) {
#if defined(__AVX512F__)
    if (count > 8) return multiply_rows<kLayerRows>(type, panel, blocks, x, 0, totals);
#endif
    for (int64_t row = 0; row < count; row += 4) multiply_rows<4>(type, panel, blocks, x, row, totals);
}

void layer_bytes(const LayerJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_layer_arguments& a = *job.arguments;
    const qw_weight_type& type = *a.weight->type;
    alignas(64) float totals[kLayerRows][kLanes];
    for (int64_t tile = first; tile < last; ++tile) {
        const int64_t token = tile * kLayerRows, left = a.tokens - token, count = left < kLayerRows ? left : kLayerRows;
        for (int64_t panel = begin; panel < end; ++panel) {  // neighbours: a row's outputs are whole cache lines
            multiply_tile(type, panel_of(*a.weight, panel), job.blocks, job.inputs + tile * job.blocks, count, totals);
            a.type == QW_BF16 ? finish_panel<bf16>(a, panel, token, count, totals)
                              : finish_panel<float>(a, panel, token, count, totals);
        }
    }
}

}  // namespace
}  // namespace qwench
