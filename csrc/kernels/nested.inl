// y = x . weight^T over nested codes, in the order that quantised.h states: a super-block is one whole number. Included once
// per instruction set, after simd_codes.h.

#include <algorithm>
#include <cmath>
#include <utility>

#include "quantised.inl"

namespace qwench {
namespace {

constexpr int64_t kSuperVectors = kChunkBlocks * kBlockVectors;
constexpr int64_t kMaxSuperParts = kChunkBlocks * kMaxParts;

// A panel's super-block, ready to be multiplied: bytes for all tokens, scales, and pairs of what multiplies parts' sums.
struct SuperStage {
    alignas(64) uint8_t bytes[kSuperVectors * kVectorBytes];
    alignas(64) int32_t scales[kMaxSuperParts][kLanes];
    alignas(64) int32_t mins[kMaxSuperParts / 2][kLanes];
    alignas(64) float super_scale[kLanes], minus_super_min[kLanes];
};

// The numbers beside a super-block's codes. Returns its codes.
const uint8_t* expand_super(const qw_weight_type& type, const uint8_t* chunk, SuperStage& stage) {
    constexpr int64_t kFloats = 2 * kPanel;
    const int64_t count = kChunkBlocks * parts_of(type);
    ask_for_scales(type, chunk, kChunkBlocks);
    const uint8_t* parts = chunk + kFloats * floats_of(type);
    store(stage.super_scale, load_scales(type.scale_type, chunk));
    for (int64_t i = 0; i < count; ++i) store_whole(stage.scales[i], whole_signed(parts + i * kPanel));
    if (type.has_min) {
        store(stage.minus_super_min, sub(zero(), load_scales(type.scale_type, chunk + kFloats)));
        parts += count * kPanel;
        for (int64_t i = 0; i < count; i += 2) {
            const I pairs = pairs_of(whole_unsigned(parts + i * kPanel), whole_unsigned(parts + (i + 1) * kPanel));
            store_whole(stage.mins[i / 2], pairs);
        }
    }
    return chunk + scale_bytes(type, kChunkBlocks);
}

// Tokens of one tile at one super-block, from one of its rows on.
struct SuperTile {
    int8_t* numbers;  // [row][256]
    int16_t* words;   // [row][24]: sums of 16 halves of blocks, then of 8 blocks
    float* scales;
    const int32_t* starts;  // [row][part]: of whole sums
};

constexpr int32_t kNoStarts[kTokenTile * kMaxSuperParts] = {};

SuperTile view_super(const CodedInputs& inputs, int64_t tile, int64_t row, int64_t super) {
    const int64_t supers = inputs.blocks / kChunkBlocks;
    const int64_t at = tile * kTokenTile * supers + super * tile_rows(inputs, tile) + row;
    const int32_t* starts = inputs.starts == nullptr ? kNoStarts : inputs.starts + at * kChunkBlocks * inputs.parts;
    return {inputs.numbers + at * QW_SUPER_BLOCK, inputs.words + at * kSumWords, inputs.scales + at, starts};
}

// totals [kRows][16] += what super-blocks' whole numbers add to them, rows side by side.
template <int kParts, int kRows>
QW_INLINE void add_supers(bool has_min, const SuperStage& stage, I (&wholes)[kRows], const int16_t* words, const float* scales,
                          float (*totals)[kLanes]) {
    V parts[kRows];
    const V super_scale = load(stage.super_scale);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) parts[m] = mul(to_float(wholes[m]), super_scale);
    if (has_min) {
        words += kParts == kMaxSuperParts ? 0 : kMaxSuperParts;
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) wholes[m] = all_whole(0);
#pragma GCC unroll 8
        for (int i = 0; i < kParts / 2; ++i) {
            const I mins = load_whole(stage.mins[i]);
#pragma GCC unroll 8
            for (int m = 0; m < kRows; ++m) wholes[m] = multiply_add_pairs(wholes[m], mins, words + m * kSumWords + 2 * i);
        }
        const V minus = load(stage.minus_super_min);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) parts[m] = fma_exact(minus, to_float(wholes[m]), parts[m]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) store(totals[m], fma_exact(parts[m], all(scales[m]), load(totals[m])));
}

// Whole sums of one block's parts times their scales, for kTokens tokens, added to `wholes`.
template <bool kWide, int kTokens, int kParts>
QW_INLINE void multiply_block_scales(const B (&v)[kBlockVectors], const int32_t (*scales)[kLanes], const int8_t* numbers,
                                     const int32_t* starts, I* wholes) {
    constexpr int kOfBlock = kParts / kChunkBlocks, kVectors = kBlockVectors / kOfBlock;
#pragma GCC unroll 2
    for (int p = 0; p < kOfBlock; ++p) {
        I sums[kTokens];
        const I scale = load_whole(scales[p]);
#pragma GCC unroll 16
        for (int m = 0; m < kTokens; ++m) sums[m] = all_whole(starts[m * kParts + p]);
#pragma GCC unroll 8
        for (int j = p * kVectors; j < (p + 1) * kVectors; ++j) {
#pragma GCC unroll 16
            for (int m = 0; m < kTokens; ++m) {
                sums[m] = multiply_add<kWide>(sums[m], v[j], numbers + m * QW_SUPER_BLOCK + j * 4);
            }
        }
#pragma GCC unroll 16
        for (int m = 0; m < kTokens; ++m) wholes[m] = add(wholes[m], mul(sums[m], scale));
    }
}

// Totals [tokens][16] of one panel += one staged super-block of it times `groups` times kTokens tokens.
template <bool kWide, int kTokens, int kParts>
void multiply_super(const qw_weight_type& type, const SuperStage& stage, const uint8_t* bytes, SuperTile tile, int64_t groups,
                    float (*totals)[kLanes]) {
    I wholes[kTokenTile];
    const int32_t* starts = tile.starts;
    for (int64_t m = 0; m < groups * kTokens; ++m) wholes[m] = all_whole(0);
    for (int64_t block = 0; block < kChunkBlocks; ++block, starts += kParts / kChunkBlocks) {
        B v[kBlockVectors];
        spread<8>(bytes + block * kVectorBytes * kBlockVectors, v);
        const int32_t(*scales)[kLanes] = stage.scales + block * (kParts / kChunkBlocks);
        for (int64_t m = 0; m < groups * kTokens; m += kTokens) {
            const int8_t* numbers = tile.numbers + m * QW_SUPER_BLOCK + block * kBlock;
            multiply_block_scales<kWide, kTokens, kParts>(v, scales, numbers, starts + m * kParts, wholes + m);
        }
    }
    for (int64_t m = 0; m < groups * kTokens; ++m) {
        I whole[1] = {wholes[m]};
        add_supers<kParts, 1>(type.has_min, stage, whole, tile.words + m * kSumWords, tile.scales + m, totals + m);
    }
}

using MultiplySuper = void (*)(const qw_weight_type&, const SuperStage&, const uint8_t*, SuperTile, int64_t, float (*)[kLanes]);

// For any number of tokens: fours, and what is left one by one.
struct SuperMultipliers {
    MultiplySuper four, one;
};

template <bool kWide, int kParts>
constexpr SuperMultipliers kMultipliers = {multiply_super<kWide, 4, kParts>, multiply_super<kWide, 1, kParts>};

SuperMultipliers choose_supers(const qw_weight_type& type) {
    const bool wide = type.bits == 8 || type.has_table;
    if (parts_of(type) == 1) return wide ? kMultipliers<true, kChunkBlocks> : kMultipliers<false, kChunkBlocks>;
    return wide ? kMultipliers<true, kMaxSuperParts> : kMultipliers<false, kMaxSuperParts>;
}

// A vocabulary's upper bits with the lower ones, or with the middle of their range.
template <class Form>
QW_INLINE void complete(const uint8_t* lower, B (&v)[kBlockVectors]) {
    constexpr int kMiddle = (1 << Form::kLower) / 2 - 1;
    B low[kBlockVectors];
    if constexpr (Form::kWhole) {
        spread<Form::kLower>(lower, low);
    } else {
        const B middle = chequered(kMiddle, kMiddle + 1);
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) low[j] = middle;
    }
    const B mask = all_bytes(((1 << Form::kBits) - 1) << Form::kLower);
#pragma GCC unroll 8
    for (int j = 0; j < kBlockVectors; ++j) v[j] = with_moved<Form::kLower>(low[j], v[j], mask);
}

// One panel's totals [kTokens][16], from token `row` on, all of one tile: from the stream into registers, nothing staged.
template <class Form, int kParts, int kTokens>
void stream_panel(const CodedJob& job, int64_t panel, int64_t row, B table, float (*totals)[kLanes]) {
    constexpr int64_t kFloats = 2 * kPanel;
    constexpr int kOfBlock = kParts / kChunkBlocks, kVectors = kBlockVectors / kOfBlock;
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    const uint8_t *chunk = panel_of(weight, panel), *lower = Form::kWhole ? lower_of(weight, panel) : nullptr;
    V sums[kTokens];
    for (int m = 0; m < kTokens; ++m) sums[m] = zero();
    for (int64_t super = 0; super < job.inputs.blocks / kChunkBlocks; ++super) {
        const SuperTile tile = view_super(job.inputs, row / kTokenTile, row % kTokenTile, super);
        const int16_t* words = tile.words + (kParts == kMaxSuperParts ? 0 : kMaxSuperParts);
        const uint8_t* scales = chunk + kFloats * floats_of(type);
        const uint8_t* codes = chunk + scale_bytes(type, kChunkBlocks);
        ask_for_scales(type, chunk, kChunkBlocks);
        I wholes[kTokens];
#pragma GCC unroll 8
        for (int m = 0; m < kTokens; ++m) wholes[m] = all_whole(0);
        for (int64_t block = 0; block < kChunkBlocks; ++block, codes += kVectorBytes * Form::kBits) {
            if constexpr (kTokens > 4) {
                ask_ahead_of_many<Form::kBits>(codes);
            } else {
                ask_ahead<Form::kBits>(codes);
            }
            B v[kBlockVectors];
            spread<Form::kBits>(codes, v);
            if constexpr (Form::kTable) {
#pragma GCC unroll 8
                for (int j = 0; j < kBlockVectors; ++j) v[j] = look_up(table, v[j]);
            }
            if constexpr (Form::kLower > 0) complete<Form>(lower, v);
            if constexpr (Form::kWhole) lower += Form::kLower * kVectorBytes;
            const int8_t* numbers = tile.numbers + block * kBlock;
#pragma GCC unroll 2
            for (int64_t part = 0; part < kOfBlock; ++part) {
                const int64_t at = block * kOfBlock + part;
                const I scale = whole_signed(scales + at * kPanel);
                I products[kTokens];
#pragma GCC unroll 8
                for (int m = 0; m < kTokens; ++m) products[m] = all_whole(tile.starts[m * kParts + at]);
#pragma GCC unroll 8
                for (int64_t j = part * kVectors; j < (part + 1) * kVectors; ++j) {
#pragma GCC unroll 8
                    for (int m = 0; m < kTokens; ++m) {
                        products[m] = multiply_add<Form::kWide>(products[m], v[j], numbers + m * QW_SUPER_BLOCK + j * 4);
                    }
                }
#pragma GCC unroll 8
                for (int m = 0; m < kTokens; ++m) wholes[m] = add(wholes[m], mul(products[m], scale));
            }
        }
        V parts[kTokens];
        const V super_scale = load_scales(type.scale_type, chunk);
#pragma GCC unroll 8
        for (int m = 0; m < kTokens; ++m) parts[m] = mul(to_float(wholes[m]), super_scale);
        if (type.has_min) {
            const uint8_t* mins = scales + kParts * kPanel;
            I lows[kTokens];
#pragma GCC unroll 8
            for (int m = 0; m < kTokens; ++m) lows[m] = all_whole(0);
#pragma GCC unroll 8
            for (int i = 0; i < kParts; i += 2) {
                const I pairs = pairs_of(whole_unsigned(mins + i * kPanel), whole_unsigned(mins + (i + 1) * kPanel));
#pragma GCC unroll 8
                for (int m = 0; m < kTokens; ++m) lows[m] = multiply_add_pairs(lows[m], pairs, words + m * kSumWords + i);
            }
            const V minus = sub(zero(), load_scales(type.scale_type, chunk + kFloats));
#pragma GCC unroll 8
            for (int m = 0; m < kTokens; ++m) parts[m] = fma_exact(minus, to_float(lows[m]), parts[m]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < kTokens; ++m) sums[m] = fma_exact(parts[m], all(tile.scales[m]), sums[m]);
        chunk = codes;
    }
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) store(totals[m], sums[m]);
}

using StreamPanel = void (*)(const CodedJob&, int64_t panel, int64_t row, B table, float (*)[kLanes]);

// Tokens whose sums have room in registers.
#if defined(__AVX512BW__)
constexpr int kTogether = 8;
#elif defined(__AVX2__)
constexpr int kTogether = 4;
#else
constexpr int kTogether = 1;
#endif

// For any number of tokens that go together, less one.
struct Streams {
    StreamPanel of[kTogether];
};

template <class Form, int kParts, int... kLess>
constexpr Streams make_streams(std::integer_sequence<int, kLess...>) {
    return {{stream_panel<Form, kParts, kLess + 1>...}};
}

template <class Form, int kParts>
constexpr Streams kStreams = make_streams<Form, kParts>(std::make_integer_sequence<int, kTogether>());

template <class Form>
Streams choose_parts(const qw_weight_type& type) {
    return parts_of(type) == 1 ? kStreams<Form, kChunkBlocks> : kStreams<Form, kMaxSuperParts>;
}

template <bool kWhole>
Streams choose_vocabulary(const qw_weight_type& type) {
    if (type.bits == 5) return choose_parts<Form<kUpperBits, false, false, 2, kWhole>>(type);
    return choose_parts<Form<kUpperBits, false, false, 3, kWhole>>(type);
}

Streams choose_streams(const CodedJob& job) {
    const qw_weight_type& type = *job.arguments->weight->type;
    if (is_vocabulary(type, job.arguments->weight->out)) {
        return job.looks == nullptr ? choose_vocabulary<true>(type) : choose_vocabulary<false>(type);
    }
    if (type.has_table) return choose_parts<Form<4, true, true>>(type);
    switch (type.bits) {
        case 2: return choose_parts<Form<2, false, false>>(type);
        case 3: return choose_parts<Form<3, false, false>>(type);
        case 4: return choose_parts<Form<4, false, false>>(type);
        case 5: return choose_parts<Form<5, false, false>>(type);
        case 6: return choose_parts<Form<6, false, false>>(type);
        default: return choose_parts<Form<8, false, true>>(type);
    }
}

// Totals [tokens][16] of one panel, tokens [first, last).
void sum_supers(const CodedJob& job, int64_t panel, int64_t first, int64_t last, B table, SuperStage& stage,
                float (*totals)[kLanes]) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    const SuperMultipliers multiply = choose_supers(type);
    const uint8_t* chunk = panel_of(weight, panel);
    for (int64_t super = 0; super < num_blocks(type, weight.in) / kChunkBlocks; ++super) {
        const uint8_t* codes = expand_super(type, chunk, stage);
        chunk += chunk_bytes(type, kChunkBlocks);
        codes = staged<false>(type, codes, kChunkBlocks, table, stage.bytes);
        for (int64_t token = first; token < last; token += kTokenTile) {
            const int64_t tile = token / kTokenTile, rows = tile_rows(job.inputs, tile), fours = rows / 4;
            float(*of)[kLanes] = totals + (token - first);
            if (fours > 0) multiply.four(type, stage, codes, view_super(job.inputs, tile, 0, super), fours, of);
            if (rows == 4 * fours) continue;
            const SuperTile rest = view_super(job.inputs, tile, 4 * fours, super);
            multiply.one(type, stage, codes, rest, rows - 4 * fours, of + 4 * fours);
        }
    }
}

// So few tokens read the stream anew for all that go together: after the first of them the panels are in a near cache. With
// VNNI staging never pays.
#if defined(__AVX512VNNI__)
constexpr int64_t kStreamedTokens = INT64_MAX;
#else
constexpr int64_t kStreamedTokens = kTokenTile;
#endif

// The squares of a panel's spreads: lower bits that are unknown meet inputs as large as the super-block's, at its scale.
V squared_spreads(const CodedJob& job, int64_t panel) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type upper = type_in_panels(*weight.type, weight.out);
    const int64_t supers = job.inputs.blocks / kChunkBlocks;
    const uint8_t* chunk = panel_of(weight, panel);
    V squares = zero();
    for (int64_t super = 0; super < supers; ++super, chunk += chunk_bytes(upper, kChunkBlocks)) {
        const V scale = load_scales(upper.scale_type, chunk);
        squares = fma_exact(mul(scale, scale), all(job.norms[super]), squares);
    }
    return mul(squares, all(factor_of(weight) * factor_of(weight)));
}

// Outputs of a panel: the last one may hold fewer than it has room for.
int64_t outputs_of(const CodedJob& job, int64_t panel) { return std::min(kPanel, job.arguments->weight->out - panel * kPanel); }

int32_t largest_rank(const CodedJob& job, int64_t panel, const float (&totals)[kLanes]) {
    const float factor = factor_of(*job.arguments->weight);
    const int32_t outputs = static_cast<int32_t>(outputs_of(job, panel));
    int32_t largest = INT32_MIN;
    for (int32_t i = 0; i < kLanes; ++i) largest = std::max(largest, i < outputs ? rank_of(totals[i] * factor) : INT32_MIN);
    return largest;
}

Look look_of(const CodedJob& job, int64_t panel, const float (&totals)[kLanes]) {
    const float spread = std::sqrt(largest(squared_spreads(job, panel)));
    return {largest_rank(job, panel, totals), static_cast<int32_t>(panel), spread, 0};
}

// Outputs of panels [begin, end) for tokens [first, last), a tile's in parts of about one size: each part's inputs stay in
// the nearest cache while all panels pass by.
void stream_panels(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last, B table) {
    const Streams streams = choose_streams(job);
    alignas(64) float totals[kTogether][kLanes];
    for (int64_t token = first; token < last;) {
        const int64_t left = tile_rows(job.inputs, token / kTokenTile) - token % kTokenTile;
        const int64_t count = divide_up(left, divide_up(left, kTogether));
        for (int64_t panel = begin; panel < end; ++panel) {
            streams.of[count - 1](job, panel, token, table, totals);
            store_panel(job, panel, token, token + count, totals);
            if (job.looks != nullptr) job.looks[panel] = look_of(job, panel, totals[0]);
        }
        token += count;
    }
}

void linear_nested(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    const qw_weight& weight = *job.arguments->weight;
    const B table = table_bytes(*weight.type);
    const bool streamed = job.inputs.tokens <= kStreamedTokens || is_vocabulary(*weight.type, weight.out);
    if (streamed) return stream_panels(job, begin, end, first, last, table);
    SuperStage stage;
    for_each_panel(job, begin, end, first, last, [&](int64_t panel, float (*totals)[kLanes]) {
        sum_supers(job, panel, first, last, table, stage, totals);
    });
}

void exact_nested(const CodedJob& job, Look& look) {
    const qw_linear_arguments& a = *job.arguments;
    const int64_t outputs = outputs_of(job, look.panel), first = look.panel * kPanel;
    const bool narrow = a.type == QW_BF16;
    const V looked = narrow ? load_some(static_cast<const bf16*>(a.y) + first, outputs)
                            : load_some(static_cast<const float*>(a.y) + first, outputs);
    alignas(64) float totals[1][kLanes], offs[kLanes], squares[kLanes];
    choose_vocabulary<true>(*a.weight->type).of[0](job, look.panel, 0, B{}, totals);
    store_panel(job, look.panel, 0, 1, totals);
    store(offs, sub(mul(load(totals[0]), all(factor_of(*a.weight))), looked));
    store(squares, squared_spreads(job, look.panel));
    look.most = largest_rank(job, look.panel, totals[0]);
    for (int64_t i = 0; i < outputs; ++i) look.squares += offs[i] == 0 ? 0 : offs[i] * offs[i] / squares[i];
}

// One token's `in` numbers rounded to 8 bits: a super-block's scale is its largest magnitude / 127.
struct NestedRow {
    template <class Input>
    static void quantise(const Input* x, int64_t in, const CodedInputs& inputs, int64_t tile, int64_t row) {
        for (int64_t super = 0; super < inputs.blocks / kChunkBlocks; ++super) {
            const SuperTile to = view_super(inputs, tile, row, super);
            V values[kMaxSuperParts];
            I magnitude = all_whole(0);
            for (int64_t i = 0; i < kMaxSuperParts; ++i) {
                const int64_t at = super * QW_SUPER_BLOCK + i * kLanes;
                values[i] = at < in ? load_some(x + at, in - at) : zero();
                magnitude = most(magnitude, magnitude_bits(values[i]));
            }
            const Rounder rounder(largest(magnitude));
            for (int64_t i = 0; i < kMaxSuperParts; ++i) {
                const I each = rounder.round(values[i]);
                store_signed(to.numbers + i * kLanes, each);
                to.words[i] = static_cast<int16_t>(sum(each));
            }
            for (int64_t i = 0; i < kChunkBlocks; ++i) {
                to.words[kMaxSuperParts + i] = static_cast<int16_t>(to.words[2 * i] + to.words[2 * i + 1]);
            }
            *to.scales = rounder.scale;
        }
    }
};

void correct_nested(const qw_weight_type& type, const CodedInputs& inputs, int64_t tile) {
    const int64_t parts = kChunkBlocks * inputs.parts, supers = inputs.blocks / kChunkBlocks, before = tile * kTokenTile * supers;
    const int16_t* sums = inputs.words + before * kSumWords + (parts == kMaxSuperParts ? 0 : kMaxSuperParts);
    int32_t* starts = inputs.starts + before * parts;
    const int32_t minus_zero = -zero_of(type);
    for (int64_t row = 0; row < supers * tile_rows(inputs, tile); ++row, sums += kSumWords, starts += parts) {
        for (int64_t i = 0; i < parts; ++i) starts[i] = minus_zero * sums[i];
    }
}

CodedPair coded_pair() {
    return {{code_inputs<PlainRow>, correct_inputs, linear_codes, nullptr},
            {code_inputs<NestedRow>, correct_nested, linear_nested, exact_nested}};
}

}  // namespace
}  // namespace qwench
