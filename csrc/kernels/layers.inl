// A vision tower's layer over codes that are bytes with one scale for a block, in the order that quantised.h states: a
// panel's sums become outputs, whatever is still done to them, while they are near. Included once per instruction set, after
// nested.inl.

#include "layer_norm.inl"
#include "powers.inl"

namespace qwench {
namespace {

// What follows the product of a tile and a panel, row by row: the next product takes a row in between now and then, whose
// instructions find room beside its own.
template <class Output, bool kGelu>
struct Finish {
    const qw_layer_arguments& a;
    float (*totals)[kLanes] = nullptr;  // [kLayerRows], of which `row` to `count` are still to be done
    int64_t row = 0, count = 0, left = 0;
    V factor = all(factor_of(*a.weight)), bias = zero();
    Output* y = nullptr;
    const Output* residual = nullptr;

    void begin(int64_t panel, int64_t first, int64_t rows, float (*sums)[kLanes]) {
        const int64_t output = panel * kPanel;
        totals = sums;
        row = 0;
        count = rows;
        left = a.weight->out - output;
        bias = load_some(static_cast<const Output*>(a.bias) + output, left);
        y = static_cast<Output*>(a.y) + first * a.y_stride + output;
        if (a.residual != nullptr) residual = static_cast<const Output*>(a.residual) + first * a.residual_stride + output;
    }

    QW_INLINE void step() {
        if (row == count) return;
        V sums = add(bias, rounded<Output>(mul(load(totals[row]), factor)));
        if constexpr (kGelu) sums = gelu<std::is_same_v<Output, bf16>>(rounded<Output>(sums));
        if (residual != nullptr) sums = add(load_some(residual + row * a.residual_stride, left), rounded<Output>(sums));
        store_some(y + row * a.y_stride, sums, left);
        ++row;
    }

    void end() {
        while (row < count) step();
    }
};

// Some blocks of one token's inputs, of which read(i) gives sixteen.
template <class Read>
void round_row(const Read& read, int64_t first, int64_t blocks, int64_t row, int32_t zero_code, LayerBlock* to) {
    for (int64_t at = first * kBlock; at < (first + blocks) * kBlock; at += kBlock, ++to) {
        const Halves halves = round_block(read(at), read(at + kLanes), to->numbers[row]);
        to->starts[row] = -zero_code * sum(add(halves.low, halves.high));
        to->scales[row] = halves.scale;
    }
}

// Numbers of one row, as they lie or normed; behind the last are zeros.
template <class Input>
struct InputRow {
    const Input* x;
    int64_t in;
    QW_INLINE V operator()(int64_t i) const { return i < in ? load_some(x + i, in - i) : zero(); }
};
template <class Input>
struct NormedRow {
    LayerNorm<Input> normed;
    QW_INLINE V operator()(int64_t i) const {
        if (i >= normed.width) return zero();
        const V found = rounded<Input>(normed.at(i));
        return normed.width - i < kLanes ? first_lanes(found, zero(), normed.width - i) : found;
    }
};

template <class Input>
void round_tile(const LayerJob& job, int64_t tile) {
    const qw_layer_arguments& a = *job.arguments;
    const int64_t first = tile * kLayerRows, left = a.tokens - first, count = left < kLayerRows ? left : kLayerRows;
    const int64_t in = a.weight->in, together = a.norm == nullptr ? kChunkBlocks : job.blocks;  // what the first cache holds
    const int32_t zero_code = zero_of(*a.weight->type);
    LayerBlock* to = job.inputs + tile * job.blocks;
    if (count < kLayerRows) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(job.blocks) * sizeof(LayerBlock));
    for (int64_t block = 0; block < job.blocks; block += together) {
        const int64_t here = job.blocks - block < together ? job.blocks - block : together;
        for (int64_t row = 0; row < count; ++row) {
            const Input* x = static_cast<const Input*>(a.x) + (first + row) * a.x_stride;
            if (a.norm == nullptr) {
                round_row(InputRow<Input>{x, in}, block, here, row, zero_code, to + block);
            } else {
                const LayerNorm<Input> normed(x, in, a.norm, a.norm_bias, 0.0f, a.epsilon);
                round_row(NormedRow<Input>{normed}, block, here, row, zero_code, to + block);
            }
        }
    }
}

void round_tile(const LayerJob& job, int64_t tile) {
    job.arguments->type == QW_BF16 ? round_tile<bf16>(job, tile) : round_tile<float>(job, tile);
}

// Sums [rows][16] of kRows tokens from `row` of a tile on, which stay in registers with what a block adds to them.
template <int kRows, class Before>
QW_INLINE void multiply_rows(const qw_weight_type& type, const uint8_t* panel, int64_t blocks, const LayerBlock* x,
                             int64_t row, float (*totals)[kLanes], Before& before) {
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
        if (block % 2 == 1) before.step();
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) store(totals[row + m], sums[m]);
}

// Totals [kLayerRows][16] of a tile, of which `count` tokens are there.
template <class Before>
void multiply_tile(const qw_weight_type& type, const uint8_t* panel, int64_t blocks, const LayerBlock* x, int64_t count,
                   float (*totals)[kLanes], Before& before) {
#if defined(__AVX512F__)
    if (count > 8) return multiply_rows<kLayerRows>(type, panel, blocks, x, 0, totals, before);
#endif
    for (int64_t row = 0; row < count; row += 4) multiply_rows<4>(type, panel, blocks, x, row, totals, before);
}

template <class Output, bool kGelu>
void multiply_panels(const LayerJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_layer_arguments& a = *job.arguments;
    alignas(64) float totals[2][kLayerRows][kLanes];
    Finish<Output, kGelu> before = {a};
    int turn = 0;
    for (int64_t tile = first; tile < last; ++tile) {
        const int64_t token = tile * kLayerRows, left = a.tokens - token, count = left < kLayerRows ? left : kLayerRows;
        const LayerBlock* x = job.inputs + tile * job.blocks;
        for (int64_t panel = begin; panel < end; ++panel, turn ^= 1) {  // neighbours: a row's outputs are whole cache lines
            multiply_tile(*a.weight->type, panel_of(*a.weight, panel), job.blocks, x, count, totals[turn], before);
            before.end();
            before.begin(panel, token, count, totals[turn]);
        }
    }
    before.end();
}

void layer_bytes(const LayerJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_layer_arguments& a = *job.arguments;
    const auto multiply = a.type == QW_BF16 ? a.gelu ? multiply_panels<bf16, true> : multiply_panels<bf16, false>
                          : a.gelu          ? multiply_panels<float, true>
                                            : multiply_panels<float, false>;
    multiply(job, begin, end, first, last);
}

}  // namespace
}  // namespace qwench
