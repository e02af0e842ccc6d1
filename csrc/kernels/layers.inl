// A vision tower's layer over codes that are bytes with one scale for a block, in the order that quantised.h states: a
// panel's sums become outputs, whatever is still done to them, while they are near. Included once per instruction set, after
// nested.inl.

#include "powers.inl"

namespace qwench {
namespace {

// As it would be after a round trip through memory.
template <class T>
QW_INLINE V kept(V a) {
    if constexpr (std::is_same_v<T, float>) return a;
#if defined(__AVX512F__)
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i whole_bits = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return {_mm512_castsi512_ps(_mm512_and_si512(whole_bits, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
#else
    bf16 stored[kLanes];
    store(stored, a);
    return load(stored);
#endif
}

template <class Output, bool kGelu>
void finish_panel(const qw_layer_arguments& a, int64_t panel, int64_t first, int64_t count, const float (*totals)[kLanes]) {
    const int64_t output = panel * kPanel, left = a.weight->out - output;
    const V factor = all(factor_of(*a.weight)), bias = load_some(static_cast<const Output*>(a.bias) + output, left);
    Output* y = static_cast<Output*>(a.y) + first * a.y_stride + output;
    const Output* residual = static_cast<const Output*>(a.residual);
    if (residual != nullptr) residual += first * a.residual_stride + output;
    for (int64_t row = 0; row < count; ++row) {
        V sums = add(bias, kept<Output>(mul(load(totals[row]), factor)));
        if constexpr (kGelu) sums = gelu<std::is_same_v<Output, bf16>>(kept<Output>(sums));
        if (residual != nullptr) sums = add(load_some(residual + row * a.residual_stride, left), kept<Output>(sums));
        store_some(y + row * a.y_stride, sums, left);
    }
}

template <class Output>
void finish_panel(const qw_layer_arguments& a, int64_t panel, int64_t first, int64_t count, const float (*totals)[kLanes]) {
    a.gelu ? finish_panel<Output, true>(a, panel, first, count, totals)
           : finish_panel<Output, false>(a, panel, first, count, totals);
}

// Totals [kTokens][16] += one chunk times some tokens of a tile, which `tile` views from its first block on.
template <int kTokens>
QW_INLINE void add_rows(const ChunkView& chunk, TileView tile, float (*totals)[kLanes]) {
    V sums[kTokens];
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) sums[m] = load(totals[m]);
    const uint8_t* codes = chunk.codes;
    for (int64_t block = 0; block < chunk.blocks; ++block, codes += kBlockVectors * kVectorBytes) {
        B v[kBlockVectors];
        spread<8>(codes, v);
        multiply_block_of<true, kTokens, 1, false>(chunk, block, v, tile, sums);
        tile.numbers += tile.rows * kBlock;
        tile.scales += tile.rows;
        tile.corrections = static_cast<const int32_t*>(tile.corrections) + tile.rows;
    }
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) store(totals[m], sums[m]);
}

// Totals [count][16] of tokens from `first` on, which is a tile's first, += one chunk, by eights that stay in registers.
void add_chunk(const CodedInputs& inputs, const qw_weight_type& type, const ChunkView& chunk, int64_t block, int64_t first,
               int64_t count, float (*totals)[kLanes]) {
    for (int64_t done = 0; done < count; done += kTokenTile) {
        const TileView tile = view_tile(inputs, type, (first + done) / kTokenTile, 0, block);
        const int32_t* starts = static_cast<const int32_t*>(tile.corrections);
        float(*of)[kLanes] = totals + done;
        int64_t row = 0;
        for (; row + 8 <= tile.rows; row += 8) {
            add_rows<8>(chunk, {tile.numbers + row * kBlock, tile.scales + row, starts + row, tile.rows}, of + row);
        }
        for (; row + 4 <= tile.rows; row += 4) {
            add_rows<4>(chunk, {tile.numbers + row * kBlock, tile.scales + row, starts + row, tile.rows}, of + row);
        }
        for (; row < tile.rows; ++row) {
            add_rows<1>(chunk, {tile.numbers + row * kBlock, tile.scales + row, starts + row, tile.rows}, of + row);
        }
    }
}

void layer_bytes(const LayerJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_layer_arguments& a = *job.arguments;
    const qw_weight_type& type = *a.weight->type;
    const int64_t blocks = num_blocks(type, a.weight->in), count = last - first;
    Stage stage;
    alignas(64) float totals[kLayerTokens][kLanes];
    for (int64_t panel = begin; panel < end; ++panel) {
        std::memset(totals, 0, static_cast<size_t>(count) * sizeof(totals[0]));
        const uint8_t* chunk = panel_of(*a.weight, panel);
        for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
            const int64_t here = blocks - block < kChunkBlocks ? blocks - block : kChunkBlocks;
            expand_scales(type, chunk, here, stage);
            const ChunkView view = {chunk + scale_bytes(type, here), &stage, here, {}};
            add_chunk(job.inputs, type, view, block, first, count, totals);
            chunk += chunk_bytes(type, here);
        }
        a.type == QW_BF16 ? finish_panel<bf16>(a, panel, first, count, totals)
                          : finish_panel<float>(a, panel, first, count, totals);
    }
}

}  // namespace
}  // namespace qwench
