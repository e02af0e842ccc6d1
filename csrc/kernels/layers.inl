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

// The same rows of the next block.
QW_INLINE TileView behind(const TileView& tile) {
    const int32_t* corrections = static_cast<const int32_t*>(tile.corrections);
    return {tile.numbers + tile.rows * kBlock, tile.scales + tile.rows, corrections + tile.rows, tile.rows};
}

// Tokens whose sums, and what a block adds to them, stay in registers: a multiple of four. They may reach into a second tile.
#if defined(__AVX512F__)
constexpr int kLayerRows = 12;
#else
constexpr int kLayerRows = 8;
#endif

constexpr int64_t kStretchChunks = 4;

// Some chunks of a panel, all of one size if they are several.
struct Stretch {
    const uint8_t* codes;   // the first chunk's
    int64_t blocks, apart;  // bytes between the chunks' codes
    alignas(64) float scales[kStretchChunks * kChunkBlocks][kLanes];
};

// The stretch from `chunk` on, where `left` blocks are left of the panel.
void view_stretch(const qw_weight_type& type, const uint8_t* chunk, int64_t left, Stretch& stretch) {
    const int64_t here = left < kChunkBlocks ? left : kChunkBlocks;
    const int64_t chunks = left < kChunkBlocks ? 1 : left / kChunkBlocks < kStretchChunks ? left / kChunkBlocks : kStretchChunks;
    stretch.apart = scale_bytes(type, here);
    stretch.codes = chunk + stretch.apart;
    stretch.blocks = chunks * here;
    for (int64_t block = 0; block < stretch.blocks; ++block) {
        const uint8_t* scales = chunk + block / here * chunk_bytes(type, here) + block % here * kPanel * 2;
        store(stretch.scales[block], load_scales(type.scale_type, scales));
    }
}

// Totals [kTokens][16] += one stretch times tokens, kFirst of them in `tile` and the others in `next`, both viewed from their
// first token's row and first block on.
template <int kTokens, int kFirst>
QW_INLINE void add_rows(const Stretch& stretch, TileView tile, TileView next, float (*totals)[kLanes]) {
    V sums[kTokens];
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) sums[m] = load(totals[m]);
    const uint8_t* codes = stretch.codes;
    for (int64_t block = 0; block < stretch.blocks; ++block, codes += kBlockVectors * kVectorBytes) {
        if (block > 0 && block % kChunkBlocks == 0) codes += stretch.apart;
        const int32_t* starts = static_cast<const int32_t*>(tile.corrections);
        const int32_t* next_starts = static_cast<const int32_t*>(next.corrections);
        I whole[kTokens];
#pragma GCC unroll 16
        for (int m = 0; m < kTokens; ++m) whole[m] = all_whole(m < kFirst ? starts[m] : next_starts[m - kFirst]);
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) {
            const B bytes = load_bytes(codes + j * kVectorBytes);
#pragma GCC unroll 16
            for (int m = 0; m < kTokens; ++m) {
                const int8_t* x = m < kFirst ? tile.numbers + m * kBlock : next.numbers + (m - kFirst) * kBlock;
                whole[m] = multiply_add<true>(whole[m], bytes, x + j * 4);
            }
        }
        const V scale = load(stretch.scales[block]);
#pragma GCC unroll 16
        for (int m = 0; m < kTokens; ++m) {
            const V input_scale = all(m < kFirst ? tile.scales[m] : next.scales[m - kFirst]);
            sums[m] = fma_exact(mul(to_float(whole[m]), scale), input_scale, sums[m]);
        }
        tile = behind(tile);
        if constexpr (kFirst < kTokens) next = behind(next);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) store(totals[m], sums[m]);
}

// kLayerRows tokens from row `row` of `tile` on.
template <int kFirst = kLayerRows>
QW_INLINE void add_together(const Stretch& stretch, int64_t left, const TileView& tile, const TileView& next,
                            float (*totals)[kLanes]) {
    if constexpr (kFirst > 4) {
        if (left < kFirst) return add_together<kFirst - 4>(stretch, left, tile, next, totals);
    }
    add_rows<kLayerRows, kFirst>(stretch, tile, next, totals);
}

// Totals [count][16] of tokens from `first` on, which is a tile's first, += one stretch.
void add_stretch(const CodedInputs& inputs, const qw_weight_type& type, const Stretch& stretch, int64_t block, int64_t first,
               int64_t count, float (*totals)[kLanes]) {
    const auto view = [&](int64_t token) { return view_tile(inputs, type, token / kTokenTile, token % kTokenTile, block); };
    int64_t done = 0;
    for (; done + kLayerRows <= count; done += kLayerRows) {
        const int64_t token = first + done, left = kTokenTile - token % kTokenTile;
        const TileView tile = view(token);
        add_together(stretch, left, tile, left < kLayerRows ? view(token + left) : tile, totals + done);
    }
    for (; done + 4 <= count; done += 4) add_rows<4, 4>(stretch, view(first + done), {}, totals + done);
    for (; done < count; ++done) add_rows<1, 1>(stretch, view(first + done), {}, totals + done);
}

void layer_bytes(const LayerJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_layer_arguments& a = *job.arguments;
    const qw_weight_type& type = *a.weight->type;
    const int64_t blocks = num_blocks(type, a.weight->in), count = last - first;
    Stretch stretch;
    alignas(64) float totals[kLayerTokens][kLanes];
    for (int64_t panel = begin; panel < end; ++panel) {
        std::memset(totals, 0, static_cast<size_t>(count) * sizeof(totals[0]));
        const uint8_t* chunk = panel_of(*a.weight, panel);
        for (int64_t block = 0; block < blocks; block += stretch.blocks) {
            view_stretch(type, chunk, blocks - block, stretch);
            add_stretch(job.inputs, type, stretch, block, first, count, totals);
            chunk += stretch.blocks / kChunkBlocks * chunk_bytes(type, kChunkBlocks);
        }
        a.type == QW_BF16 ? finish_panel<bf16>(a, panel, first, count, totals)
                          : finish_panel<float>(a, panel, first, count, totals);
    }
}

}  // namespace
}  // namespace qwench
