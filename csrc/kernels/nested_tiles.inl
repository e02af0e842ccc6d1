// Nested codes through AMX. Included once, after nested.inl and tiles.h.
//
// A code times its scale takes at most 16 bits. Cut into two bytes it makes two matrices whose products run through a whole
// super-block inside the tile registers: what leaves them is the sum that quantised.h calls whole, in two parts. Where codes
// are of 4 bits the scale is cut instead, into its lowest 4 bits and the rest: a code times either is a byte.

namespace qwench {
namespace {

constexpr int64_t kSteps = 4;  // tiles of 64 along a super-block
constexpr int64_t kStepDepth = QW_SUPER_BLOCK / kSteps;
constexpr int64_t kStepBytes = kStepDepth / 4 * kVectorBytes;

// A panel's super-block as both bytes of every product.
struct ProductStage {
    SuperStage super;
    alignas(64) uint8_t lows[kSuperVectors * kVectorBytes];
    alignas(64) uint8_t highs[kSuperVectors * kVectorBytes];
};

// How far the second matrix's sums are to be moved: what its scales were divided by.
template <bool kCutScales>
constexpr int kCut = kCutScales ? 4 : 8;

bool cuts_scales(const qw_weight_type& type) { return type.bits <= 4 && !type.has_table && type.has_min && type.zero == 0; }

// Two bytes' products with a negative number, multiplied as one: the upper one lacks what the lower one borrowed.
void return_borrowed(uint8_t* products) {
    for (int64_t j = 0; j < kBlockVectors; ++j, products += kVectorBytes) {
        const __m512i both = _mm512_load_si512(products), borrowed = _mm512_and_si512(both, _mm512_set1_epi16(0x80));
        _mm512_store_si512(products, _mm512_add_epi16(both, _mm512_slli_epi16(borrowed, 1)));
    }
}

// Both matrices of a super-block where scales are cut: two codes at once are multiplied, each product has room in its byte.
template <int kBits>
void stage_cut_scales(const uint8_t* codes, ProductStage& stage, int64_t parts) {
    uint8_t *lows = stage.lows, *highs = stage.highs;
    const int32_t(*scales)[kLanes] = stage.super.scales;
    for (int64_t block = 0; block < kChunkBlocks; ++block, codes += kBits * kVectorBytes) {
        B v[kBlockVectors];
        ask_ahead<kBits>(codes);
        spread<kBits>(codes, v);
        __m512i low, high;
        __mmask32 negative = 0;
#pragma GCC unroll 8
        for (int64_t j = 0; j < kBlockVectors; ++j) {
            if (j == 0 || (j == kBlockVectors / 2 && parts > 1)) {
                const I scale = load_whole(*scales++);
                const __m512i pair = pairs_of(scale, scale).v;
                low = _mm512_and_si512(pair, _mm512_set1_epi16(15));
                high = _mm512_srai_epi16(pair, 4);
                negative |= _mm512_movepi16_mask(pair);
            }
            _mm512_store_si512(lows + j * kVectorBytes, _mm512_mullo_epi16(v[j].v, low));
            _mm512_store_si512(highs + j * kVectorBytes, _mm512_mullo_epi16(v[j].v, high));
        }
        if (negative != 0) return_borrowed(highs);
        lows += kBlockVectors * kVectorBytes;
        highs += kBlockVectors * kVectorBytes;
    }
}

template <class Form>
void stage_products(const uint8_t* codes, B table, int32_t zero_byte, ProductStage& stage, int64_t parts) {
    const __m512i low_byte = _mm512_set1_epi32(0xff);
    uint8_t *lows = stage.lows, *highs = stage.highs;
    const int32_t(*scales)[kLanes] = stage.super.scales;
    for (int64_t block = 0; block < kChunkBlocks; ++block, codes += Form::kBits * kVectorBytes) {
        B v[kBlockVectors];
        ask_ahead<Form::kBits>(codes);
        spread<Form::kBits>(codes, v);
        __m512i even, odd, zeros;
#pragma GCC unroll 8
        for (int64_t j = 0; j < kBlockVectors; ++j) {
            if (j == 0 || (j == kBlockVectors / 2 && parts > 1)) {  // what multiplies the even bytes, and the odd ones
                const __m512i scale = load_whole(*scales++).v;
                even = _mm512_and_si512(scale, low_byte);
                even = _mm512_or_si512(even, _mm512_slli_epi32(even, 16));
                odd = _mm512_slli_epi16(even, 8);
                zeros = pairs_of({_mm512_mullo_epi32(scale, _mm512_set1_epi32(zero_byte))},
                                 {_mm512_mullo_epi32(scale, _mm512_set1_epi32(zero_byte))}).v;
            }
            if constexpr (Form::kTable) v[j] = look_up(table, v[j]);
            const __m512i evens = _mm512_sub_epi16(_mm512_maddubs_epi16(v[j].v, even), zeros);
            const __m512i odds = _mm512_sub_epi16(_mm512_maddubs_epi16(v[j].v, odd), zeros);
            constexpr __mmask64 kOdd = 0xaaaaaaaaaaaaaaaa;
            _mm512_store_si512(lows, _mm512_mask_blend_epi8(kOdd, evens, _mm512_slli_epi16(odds, 8)));
            _mm512_store_si512(highs, _mm512_mask_blend_epi8(kOdd, _mm512_srli_epi16(evens, 8), odds));
            lows += kVectorBytes;
            highs += kVectorBytes;
        }
    }
}

void stage_products(const qw_weight_type& type, const uint8_t* codes, B table, ProductStage& stage) {
    const int64_t parts = parts_of(type);
    if (cuts_scales(type)) {
        switch (type.bits) {
            case 2: return stage_cut_scales<2>(codes, stage, parts);
            case 3: return stage_cut_scales<3>(codes, stage, parts);
            default: return stage_cut_scales<4>(codes, stage, parts);
        }
    }
    const int32_t zero_byte = zero_of(type);
    if (type.has_table) return stage_products<Form<4, true, true>>(codes, table, zero_byte, stage, parts);
    switch (type.bits) {
        case 2: return stage_products<Form<2, false, false>>(codes, table, zero_byte, stage, parts);
        case 3: return stage_products<Form<3, false, false>>(codes, table, zero_byte, stage, parts);
        case 4: return stage_products<Form<4, false, false>>(codes, table, zero_byte, stage, parts);
        case 5: return stage_products<Form<5, false, false>>(codes, table, zero_byte, stage, parts);
        case 6: return stage_products<Form<6, false, false>>(codes, table, zero_byte, stage, parts);
        default: return stage_products<Form<8, false, true>>(codes, table, zero_byte, stage, parts);
    }
}

// What left the tile registers: two tiles of 16 tokens times 16 outputs, in two bytes' parts.
struct alignas(64) ProductSums {
    int32_t lows[2][kTokenTile][kLanes];
    int32_t highs[2][kTokenTile][kLanes];
    int32_t apart[kLanes];
};

// Sums on their way into totals: those of `rows` tokens of a tile or two.
struct Pending {
    const ProductSums* sums;
    const SuperStage* stage;
    SuperTile tiles[2];
    int64_t rows;
    float (*totals)[kLanes];
};

template <int kParts, bool kMin, bool kCutScales, int kRows>
QW_INLINE void add_sums(const Pending& from, int64_t first) {
    const int64_t t = first / kTokenTile, at = first % kTokenTile;
    const SuperTile& tile = from.tiles[t];
    I wholes[kRows];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
        const __m512i high = _mm512_slli_epi32(load_whole(from.sums->highs[t][at + m]).v, kCut<kCutScales>);
        wholes[m] = add({high}, load_whole(from.sums->lows[t][at + m]));
    }
    add_supers<kParts, kRows>(kMin, *from.stage, wholes, tile.words + at * kSumWords, tile.scales + at, from.totals + first);
}

// Rows [first, first + kRows) of what is pending.
template <int kParts, bool kMin, bool kCutScales, int kRows>
QW_INLINE void add_rows(const Pending& from, int64_t first) {
    if (first + kRows <= from.rows) return add_sums<kParts, kMin, kCutScales, kRows>(from, first);
    for (int64_t row = first; row < from.rows; ++row) add_sums<kParts, kMin, kCutScales, 1>(from, row);
}

// Sums of one panel's super-block times one or two tiles. While the tile unit multiplies, a few of the sums before these are
// added up in each turn: what is far from it in the program would wait for it.
template <int kTiles, int kParts, bool kMin, bool kCutScales>
void multiply_products(const ProductStage& stage, const SuperTile (&tiles)[2], ProductSums& sums, const Pending& before,
                       const int8_t* ahead) {
    constexpr int64_t kTurns = 2 * kTiles * kSteps, kRows = 2 * kTokenTile / kTurns, kLines = 64 / kTurns;
    int64_t turn = 0;
    const auto take_turn = [&] {
        add_rows<kParts, kMin, kCutScales, kRows>(before, turn * kRows);
#pragma GCC unroll 8
        for (int64_t line = turn * kLines; line < (turn + 1) * kLines; ++line) __builtin_prefetch(ahead + line * 64);
        ++turn;
    };
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#pragma GCC unroll 4
    for (int64_t step = 0; step < kSteps; ++step) {
        _tile_loadd(4, tiles[0].numbers + step * kStepDepth, QW_SUPER_BLOCK);
        _tile_loadd(6, stage.lows + step * kStepBytes, kVectorBytes);
        _tile_dpbsud(0, 4, 6);
        take_turn();
        _tile_loadd(7, stage.highs + step * kStepBytes, kVectorBytes);
        _tile_dpbssd(1, 4, 7);
        take_turn();
        if constexpr (kTiles == 2) {
            _tile_loadd(5, tiles[1].numbers + step * kStepDepth, QW_SUPER_BLOCK);
            _tile_dpbsud(2, 5, 6);
            take_turn();
            _tile_dpbssd(3, 5, 7);
            take_turn();
        }
    }
    _tile_stored(0, sums.lows[0], kLanes * 4);
    _tile_stored(1, sums.highs[0], kLanes * 4);
    if constexpr (kTiles == 2) {
        _tile_stored(2, sums.lows[1], kLanes * 4);
        _tile_stored(3, sums.highs[1], kLanes * 4);
    }
}

constexpr int64_t kPanelsTogether = 2;

constexpr int64_t kStreamedBytes = 1 << 20;

// Whether outputs are so large and lie so that cache lines of them should go past the caches: who writes to a line as usual
// waits until memory has sent it.
bool streams(const qw_linear_arguments& a) {
    const int64_t size = value_bytes(a.type);
    const bool whole_lines = (reinterpret_cast<uintptr_t>(a.y) | static_cast<uintptr_t>(a.y_stride * size)) % kVectorBytes == 0;
    return a.residual == nullptr && whole_lines && a.tokens * a.weight->out * size >= kStreamedBytes;
}

// One token's outputs of two panels.
void stream_outputs(const qw_linear_arguments& a, int64_t panel, int64_t token, V first, V second) {
    const int64_t at = token * a.y_stride + panel * kPanel;
    if (a.type == QW_BF16) {
        alignas(64) bf16 line[2 * kPanel];
        store(line, first);
        store(line + kPanel, second);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(static_cast<bf16*>(a.y) + at), _mm512_load_si512(line));
    } else {
        _mm512_stream_ps(static_cast<float*>(a.y) + at, first.v);
        _mm512_stream_ps(static_cast<float*>(a.y) + at + kPanel, second.v);
    }
}

// Totals of `panels` panels from `panel` on, tokens [first, last).
template <int kParts, bool kMin, bool kCutScales>
void sum_products(const CodedJob& job, int64_t panel, int64_t panels, int64_t first, int64_t last, B table,
                  float (*totals)[kTokenBlock + 1][kLanes]) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    ProductStage stages[kPanelsTogether];
    ProductSums sums[2];
    const int64_t supers = num_blocks(type, weight.in) / kChunkBlocks;
    for (int64_t super = 0; super < supers; ++super) {
        for (int64_t p = 0; p < panels; ++p) {
            const uint8_t* chunk = panel_of(weight, panel + p) + super * chunk_bytes(type, kChunkBlocks);
            stage_products(type, expand_super(type, chunk, stages[p].super), table, stages[p]);
        }
        asm volatile("" : : : "memory");  // the intrinsics do not say that tiles are loaded from memory
        Pending pending = {};
        int64_t turn = 0;
        const int64_t depth = job.inputs.blocks * kBlock;
        for (int64_t token = first; token < last; token += 2 * kTokenTile) {
            const bool two = last - token > kTokenTile;
            const int64_t tile = token / kTokenTile;
            const SuperTile one = view_super(job.inputs, tile, 0, super);
            const SuperTile tiles[2] = {one, two ? view_super(job.inputs, tile + 1, 0, super) : one};
            const int64_t rows = last - token < 2 * kTokenTile ? last - token : 2 * kTokenTile;
            for (int64_t p = 0; p < panels; ++p, turn ^= 1) {
                const int8_t* ahead = one.numbers + (2 + p) * kTokenTile * depth;
                if (two) {
                    multiply_products<2, kParts, kMin, kCutScales>(stages[p], tiles, sums[turn], pending, ahead);
                } else {
                    multiply_products<1, kParts, kMin, kCutScales>(stages[p], tiles, sums[turn], pending, ahead);
                }
                pending = {&sums[turn], &stages[p].super, {tiles[0], tiles[1]}, rows, totals[p] + (token - first)};
            }
        }
        for (int64_t row = 0; row < pending.rows; row += 8) add_rows<kParts, kMin, kCutScales, 8>(pending, row);
    }
}

using SumProducts = void (*)(const CodedJob&, int64_t panel, int64_t panels, int64_t first, int64_t last, B table,
                             float (*totals)[kTokenBlock + 1][kLanes]);

template <int kParts>
SumProducts choose_sums(const qw_weight_type& type) {
    if (cuts_scales(type)) return sum_products<kParts, true, true>;
    return type.has_min ? sum_products<kParts, true, false> : sum_products<kParts, false, false>;
}

void shape_product_tiles() {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, kTokenTile, kVectorBytes);
    shapes.load();
}

void nested_by_tiles(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    if (last - first < kFewNested || is_vocabulary(type, weight.out)) return linear_nested(job, begin, end, first, last);
    const B table = table_bytes(type);
    const bool streamed = streams(*job.arguments);
    const V factor = all(factor_of(weight));
    const auto sum = parts_of(type) == 1 ? choose_sums<kChunkBlocks>(type) : choose_sums<kMaxSuperParts>(type);
    alignas(64) float totals[kPanelsTogether][kTokenBlock + 1][kLanes];
    shape_product_tiles();
    for (int64_t panel = begin; panel < end; panel += kPanelsTogether) {
        const int64_t panels = end - panel < kPanelsTogether ? end - panel : kPanelsTogether;
        for (int64_t p = 0; p < panels; ++p) {
            for (int64_t row = 0; row < last - first; ++row) store(totals[p][row], zero());
        }
        sum(job, panel, panels, first, last, table, totals);
        const bool past_caches = streamed && panels == 2 && (panel + 2) * kPanel <= weight.out && panel % 2 == 0;
        for (int64_t token = first; token < last; ++token) {  // rows lie far apart: each is written to once
            const int64_t row = token - first;
            if (past_caches) {
                const V one = mul(load(totals[0][row]), factor), other = mul(load(totals[1][row]), factor);
                stream_outputs(*job.arguments, panel, token, one, other);
                continue;
            }
            for (int64_t p = 0; p < panels; ++p) store_panel(job, panel + p, token, token + 1, totals[p] + row);
        }
    }
    if (streamed) _mm_sfence();
    _tile_release();
}

}  // namespace
}  // namespace qwench
