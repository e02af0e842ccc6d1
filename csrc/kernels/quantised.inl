// y = x . weight^T over codes whose scales are floats, in the order that quantised.h states. Included once per instruction
// set, after simd_codes.h.
//
// A task goes panel by panel and chunk by chunk. For one token the codes go from the stream into registers and are gone;
// for more they are first spread out to bytes in the nearest cache, where every token of the task meets them.

#include "outputs.inl"

namespace qwench {
namespace {

constexpr int64_t kAheadBytes = 16384;  // in the weights' stream: so far that memory has answered when it is reached
constexpr int64_t kNearBytes = 4096;    // the same where several tokens take longer to reach it

// A panel's chunk, ready to be multiplied.
struct Stage {
    alignas(64) uint8_t bytes[kChunkBlocks * kBlockVectors * kVectorBytes];
    alignas(64) float scales[kChunkBlocks * kMaxParts][kLanes];
    alignas(64) float minus_mins[kChunkBlocks * kMaxParts][kLanes];
};

QW_INLINE V load_scales(int32_t type, const uint8_t* from) {
    return type == QW_BF16 ? load(reinterpret_cast<const bf16*>(from)) : load_half(from);
}

// Asks for cache lines of the stream that far ahead, into the second cache: the first is too small for what is under way.
template <int kLines>
QW_INLINE void ask_ahead(const uint8_t* from) {
    if (!kAsksAhead) return;
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(from + line * 64 + kAheadBytes, 0, 2);
}

// The same for several tokens. Where asking far ahead holds up other reads it does not in the near: into the first cache,
// which the multiplications leave alone for long enough.
template <int kLines>
QW_INLINE void ask_ahead_of_many(const uint8_t* from) {
    if (kAsksAhead) return ask_ahead<kLines>(from);
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(from + line * 64 + kNearBytes, 0, 3);
}

// The same for a chunk's scales and mins.
void ask_for_scales(const qw_weight_type& type, const uint8_t* chunk, int64_t blocks) {
    for (int64_t line = 0; line < scale_bytes(type, blocks); line += 64) ask_ahead<1>(chunk + line);
}

// Scales and mins of a chunk as fp32.
void expand_scales(const qw_weight_type& type, const uint8_t* chunk, int64_t blocks, Stage& stage) {
    constexpr int64_t kFloats = 2 * kPanel;
    const int64_t count = blocks * parts_of(type);
    ask_for_scales(type, chunk, blocks);
    for (int64_t i = 0; i < count; ++i) store(stage.scales[i], load_scales(type.scale_type, chunk + i * kFloats));
    if (!type.has_min) return;
    chunk += count * kFloats;
    for (int64_t i = 0; i < count; ++i) {
        store(stage.minus_mins[i], sub(zero(), load_scales(type.scale_type, chunk + i * kFloats)));
    }
    if (zero_of(type) == 0) return;
    const V minus_zero = all(static_cast<float>(-zero_of(type)));
    for (int64_t i = 0; i < count; ++i) {
        store(stage.minus_mins[i], fma_exact(minus_zero, load(stage.scales[i]), load(stage.minus_mins[i])));
    }
}

// The vectors of one block, one code a byte, from its planes of bits.
template <int kBits>
QW_INLINE void spread(const uint8_t* codes, B (&v)[kBlockVectors]) {
    if constexpr (kBits == 8) {
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) v[j] = load_bytes(codes + j * kVectorBytes);
    } else if constexpr (kBits >= 4) {
        const B mask = all_bytes(15);
#pragma GCC unroll 8
        for (int k = 0; k < 4; ++k) {
            const B both = load_bytes(codes + k * kVectorBytes);
            v[2 * k] = moved<0>(both, mask);
            v[2 * k + 1] = moved<-4>(both, mask);
        }
    } else {
        const B mask = all_bytes(3);
#pragma GCC unroll 8
        for (int k = 0; k < 2; ++k) {
            const B four = load_bytes(codes + k * kVectorBytes);
            v[4 * k] = moved<0>(four, mask);
            v[4 * k + 1] = moved<-2>(four, mask);
            v[4 * k + 2] = moved<-4>(four, mask);
            v[4 * k + 3] = moved<-6>(four, mask);
        }
    }
    if constexpr (kBits == 6) {
        const B mask = all_bytes(0x30);
#pragma GCC unroll 8
        for (int k = 0; k < 2; ++k) {
            const B four = load_bytes(codes + (4 + k) * kVectorBytes);
            v[4 * k] = with_moved<4>(v[4 * k], four, mask);
            v[4 * k + 1] = with_moved<2>(v[4 * k + 1], four, mask);
            v[4 * k + 2] = with_moved<0>(v[4 * k + 2], four, mask);
            v[4 * k + 3] = with_moved<-2>(v[4 * k + 3], four, mask);
        }
    } else if constexpr (kBits == 5 || kBits == 3) {
        constexpr int kLow = kBits - 1;
        const B mask = all_bytes(1 << kLow), eight = load_bytes(codes + kLow * kVectorBytes);
        v[0] = with_moved<kLow>(v[0], eight, mask);
        v[1] = with_moved<kLow - 1>(v[1], eight, mask);
        v[2] = with_moved<kLow - 2>(v[2], eight, mask);
        v[3] = with_moved<kLow - 3>(v[3], eight, mask);
        v[4] = with_moved<kLow - 4>(v[4], eight, mask);
        v[5] = with_moved<kLow - 5>(v[5], eight, mask);
        v[6] = with_moved<kLow - 6>(v[6], eight, mask);
        v[7] = with_moved<kLow - 7>(v[7], eight, mask);
    }
}

// What one table entry stands for, from 0 on; zeros without a table.
B table_bytes(const qw_weight_type& type) {
    uint8_t values[16] = {};
    if (!type.has_table) return sixteen_bytes(values);
    const int32_t least = table_minimum(type);
    for (int i = 0; i < 16; ++i) values[i] = static_cast<uint8_t>(type.table[i] - least);
    return sixteen_bytes(values);
}

// kBits of a code, or bytes that are values already; kWide where these may exceed 127. Of a vocabulary's codes there are
// kLower bits below these, which are read where kWhole.
template <int kCodeBits, bool kHasTable, bool kAnyByte, int kLowerBits = 0, bool kAllBits = false>
struct Form {
    static constexpr int kBits = kCodeBits, kLower = kLowerBits;
    static constexpr bool kTable = kHasTable, kWide = kAnyByte, kWhole = kAllBits;
};

// Tokens of one tile, from one of its rows and one block on.
struct TileView {
    const int8_t* numbers;
    const float* scales;
    const void* corrections;
    int64_t rows;  // of the tile
};

TileView view_tile(const CodedInputs& inputs, const qw_weight_type& type, int64_t tile, int64_t row, int64_t block) {
    const int64_t before = rows_before(inputs, tile, block), rows = tile_rows(inputs, tile);
    const int32_t* corrections = static_cast<const int32_t*>(inputs.corrections) + before * parts_of(type) + row;
    return {inputs.numbers + (before + row) * kBlock, inputs.scales + before + row, corrections, rows};
}

// A chunk's bytes, stage or stream, with what goes beside them.
struct ChunkView {
    const uint8_t* codes;
    const Stage* stage;
    int64_t blocks;
    B table;
};

// Whole sums of one part of a block for kTokens tokens. Chains of additions run side by side, four at least, so that one
// need not wait for its own last step; in which order whole numbers are added is all the same.
template <bool kWide, bool kStarts, int kTokens, int kVectors>
QW_INLINE void multiply_part(const B* v, const int8_t* x, const int32_t* starts, I (&whole)[kTokens]) {
    constexpr int kChains = kTokens >= 4 ? 1 : kVectors / 2;
    I sums[kTokens][kChains];
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) {
        sums[m][0] = all_whole(kStarts ? starts[m] : 0);
        for (int chain = 1; chain < kChains; ++chain) sums[m][chain] = all_whole(0);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
#pragma GCC unroll 16
        for (int m = 0; m < kTokens; ++m) {
            I& sum = sums[m][j % kChains];
            sum = multiply_add<kWide>(sum, v[j], x + m * kBlock + j * 4);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) {
        whole[m] = sums[m][0];
        for (int chain = 1; chain < kChains; ++chain) whole[m] = add(whole[m], sums[m][chain]);
    }
}

// One block of one panel for kTokens tokens: their totals += what quantised.h calls a part, times the input's scale.
template <bool kWide, int kTokens, int kParts, bool kMin>
QW_INLINE void multiply_block_of(const ChunkView& chunk, int64_t block, const B (&v)[kBlockVectors], const TileView& tile,
                                 V* totals) {
    constexpr int kVectors = kBlockVectors / kParts;
    const int32_t* starts = static_cast<const int32_t*>(tile.corrections);
    const float* input_sums = static_cast<const float*>(tile.corrections);
    V part[kTokens];
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
        I whole[kTokens];
        const int8_t* x = tile.numbers + p * kVectors * 4;
        multiply_part<kWide, !kMin, kTokens, kVectors>(v + p * kVectors, x, starts + p * tile.rows, whole);
        const V scale = load(chunk.stage->scales[block * kParts + p]);
#pragma GCC unroll 16
        for (int m = 0; m < kTokens; ++m) {
            part[m] = p == 0 ? mul(to_float(whole[m]), scale) : fma_exact(to_float(whole[m]), scale, part[m]);
        }
    }
    if constexpr (kMin) {
#pragma GCC unroll 2
        for (int p = 0; p < kParts; ++p) {
            const V minus_min = load(chunk.stage->minus_mins[block * kParts + p]);
#pragma GCC unroll 16
            for (int m = 0; m < kTokens; ++m) {
                part[m] = fma_exact(minus_min, all(input_sums[p * tile.rows + m]), part[m]);
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) totals[m] = fma_exact(part[m], all(tile.scales[m]), totals[m]);
}

// Totals [kTokens][16] of one panel += one chunk of it times kTokens tokens.
template <class Form, int kTokens, int kParts, bool kMin>
void multiply_chunk(const ChunkView& chunk, TileView tile, float (*totals)[kLanes]) {
    constexpr int kTogether = kTokens < 4 ? kTokens : 4;
    V sums[kTokens];
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) sums[m] = load(totals[m]);
    for (int64_t block = 0; block < chunk.blocks; ++block) {
        const uint8_t* codes = chunk.codes + block * kVectorBytes * Form::kBits;
        if constexpr (kTokens == 1) {
            ask_ahead<Form::kBits>(codes);
        }
        B v[kBlockVectors];
        spread<Form::kBits>(codes, v);
        if constexpr (Form::kTable) {
#pragma GCC unroll 8
            for (int j = 0; j < kBlockVectors; ++j) v[j] = look_up(chunk.table, v[j]);
        }
#pragma GCC unroll 4
        for (int m = 0; m < kTokens; m += kTogether) {
            const TileView from = {tile.numbers + m * kBlock, tile.scales + m,
                                   static_cast<const int32_t*>(tile.corrections) + m, tile.rows};
            multiply_block_of<Form::kWide, kTogether, kParts, kMin>(chunk, block, v, from, sums + m);
        }
        tile.numbers += tile.rows * kBlock;
        tile.scales += tile.rows;
        tile.corrections = static_cast<const int32_t*>(tile.corrections) + kParts * tile.rows;
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTokens; ++m) store(totals[m], sums[m]);
}

using MultiplyChunk = void (*)(const ChunkView&, TileView, float (*)[kLanes]);

template <class Form, int kTokens>
MultiplyChunk choose_scales(const qw_weight_type& type) {
    if (parts_of(type) == 1) {
        return type.has_min ? multiply_chunk<Form, kTokens, 1, true> : multiply_chunk<Form, kTokens, 1, false>;
    }
    return type.has_min ? multiply_chunk<Form, kTokens, 2, true> : multiply_chunk<Form, kTokens, 2, false>;
}

// For one token, straight from the stream.
MultiplyChunk choose_single(const qw_weight_type& type) {
    if (type.has_table) return choose_scales<Form<4, true, true>, 1>(type);
    switch (type.bits) {
        case 4: return choose_scales<Form<4, false, false>, 1>(type);
        case 5: return choose_scales<Form<5, false, false>, 1>(type);
        default: return choose_scales<Form<8, false, true>, 1>(type);
    }
}

// Blocks of 16, 8, 4, 2 and 1 tokens from staged bytes: any number of tokens is a sum of these.
constexpr int kBlockSizes = 5;
struct Multipliers {
    MultiplyChunk of[kBlockSizes];
};

template <bool kWide>
Multipliers choose_staged(const qw_weight_type& type) {
    using Bytes = Form<8, false, kWide>;
    return {{choose_scales<Bytes, 16>(type), choose_scales<Bytes, 8>(type), choose_scales<Bytes, 4>(type),
             choose_scales<Bytes, 2>(type), choose_scales<Bytes, 1>(type)}};
}

// With kSigned the values themselves, else what stands for them from 0 on.
template <int kBits, bool kSigned>
void stage_codes(const uint8_t* codes, int64_t blocks, const qw_weight_type& type, B table, uint8_t* bytes) {
    const B zero_byte = all_bytes(zero_of(type));
    for (int64_t block = 0; block < blocks; ++block) {
        B v[kBlockVectors];
        ask_ahead<kBits>(codes);
        spread<kBits>(codes, v);
#pragma GCC unroll 8
        for (int j = 0; j < kBlockVectors; ++j) {
            if (kBits == 4 && type.has_table) v[j] = look_up(table, v[j]);
            store_bytes(bytes + j * kVectorBytes, kSigned ? sub(v[j], zero_byte) : v[j]);
        }
        codes += kBits * kVectorBytes;
        bytes += kBlockVectors * kVectorBytes;
    }
}

// The chunk's values as bytes: in the stage, or where they lie if that is what they are.
template <bool kSigned>
const uint8_t* staged(const qw_weight_type& type, const uint8_t* codes, int64_t blocks, B table, uint8_t* bytes) {
    switch (type.bits) {
        case 2: stage_codes<2, kSigned>(codes, blocks, type, table, bytes); break;
        case 3: stage_codes<3, kSigned>(codes, blocks, type, table, bytes); break;
        case 4: stage_codes<4, kSigned>(codes, blocks, type, table, bytes); break;
        case 5: stage_codes<5, kSigned>(codes, blocks, type, table, bytes); break;
        case 6: stage_codes<6, kSigned>(codes, blocks, type, table, bytes); break;
        default:
            if (!kSigned) return codes;
            stage_codes<8, kSigned>(codes, blocks, type, table, bytes);
    }
    return bytes;
}

template <class Output>
void store_outputs(const qw_linear_arguments& a, int64_t panel, int64_t token, float factor, const float* totals) {
    store_row<Output>(a, token, panel * kPanel, mul(load(totals), all(factor)));
}

// Totals [tokens][16] of tokens [first, last) += one chunk.
void multiply_tiles(const CodedInputs& inputs, const qw_weight_type& type, const Multipliers& multiply,
                    const ChunkView& chunk, int64_t block, int64_t first, int64_t last, float (*totals)[kLanes]) {
    for (int64_t token = first; token < last; token += kTokenTile) {
        const int64_t tile = token / kTokenTile, rows = tile_rows(inputs, tile);
        int64_t row = 0;
        for (int size = 0; size < kBlockSizes; ++size) {
            const int64_t width = kTokenTile >> size;
            for (; row + width <= rows; row += width) {
                multiply.of[size](chunk, view_tile(inputs, type, tile, row, block), totals + (token - first + row));
            }
        }
    }
}

// One panel's totals [tokens][16] for tokens [first, last), chunk by chunk. `view` has the type's table.
void sum_panel(const CodedJob& job, int64_t panel, int64_t first, int64_t last, ChunkView view, Stage& stage,
               float (*totals)[kLanes]) {
    const qw_weight& weight = *job.arguments->weight;
    const qw_weight_type& type = *weight.type;
    const bool single = job.inputs.tokens == 1;
    const MultiplyChunk multiply_single = choose_single(type);
    const Multipliers multiply = type.bits == 8 || type.has_table ? choose_staged<true>(type) : choose_staged<false>(type);
    const uint8_t* chunk = panel_of(weight, panel);
    const int64_t blocks = num_blocks(type, weight.in);
    for (int64_t block = 0; block < blocks; block += kChunkBlocks) {
        view.blocks = blocks - block < kChunkBlocks ? blocks - block : kChunkBlocks;
        expand_scales(type, chunk, view.blocks, stage);
        view.codes = chunk + scale_bytes(type, view.blocks);
        if (single) {
            multiply_single(view, view_tile(job.inputs, type, 0, 0, block), totals);
        } else {
            view.codes = staged<false>(type, view.codes, view.blocks, view.table, stage.bytes);
            multiply_tiles(job.inputs, type, multiply, view, block, first, last, totals);
        }
        chunk += chunk_bytes(type, view.blocks);
    }
}

// Outputs of a panel for tokens [first, last).
void store_panel(const CodedJob& job, int64_t panel, int64_t first, int64_t last, float (*totals)[kLanes]) {
    const float factor = factor_of(*job.arguments->weight);
    for (int64_t row = 0; row < last - first; ++row) {
        if (job.arguments->type == QW_BF16) {
            store_outputs<bf16>(*job.arguments, panel, first + row, factor, totals[row]);
        } else {
            store_outputs<float>(*job.arguments, panel, first + row, factor, totals[row]);
        }
    }
}

// Outputs of panels [begin, end) for tokens [first, last), whose totals `sum` computes; `first` is a multiple of a tile.
template <class Sum>
void for_each_panel(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last, const Sum& sum) {
    alignas(64) float totals[kTokenBlock][kLanes];
    for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t row = 0; row < last - first; ++row) store(totals[row], zero());
        sum(panel, totals);
        store_panel(job, panel, first, last, totals);
    }
}

void linear_codes(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
    Stage stage;
    const ChunkView view = {nullptr, &stage, 0, table_bytes(*job.arguments->weight->type)};
    for_each_panel(job, begin, end, first, last, [&](int64_t panel, float (*totals)[kLanes]) {
        sum_panel(job, panel, first, last, view, stage, totals);
    });
}

// What numbers of up to a magnitude, whose bits these are, are rounded by: their scale, and what undoes it.
struct Rounder {
    float scale;
    V inverse;

    explicit Rounder(int32_t bits) {
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        scale = magnitude / 127.0f;
        inverse = all(scale > 0.0f ? 1.0f / scale : 0.0f);
    }
    QW_INLINE I round(V x) const { return to_whole(least(most(mul(x, inverse), all(-127.0f)), all(127.0f))); }
};

// A block's numbers, rounded, and their scale.
struct Halves {
    I low, high;
    float scale;
};

// Writes a block of one row's inputs, both halves of it, rounded to 8 bits: its scale is its largest magnitude / 127.
QW_INLINE Halves round_block(V first, V second, int8_t* numbers) {
    // Magnitudes are compared as whole numbers, among which NaN is the largest: it makes the scale NaN.
    const Rounder rounder(largest(most(magnitude_bits(first), magnitude_bits(second))));
    const Halves halves = {rounder.round(first), rounder.round(second), rounder.scale};
    store_signed(numbers, halves.low);
    store_signed(numbers + kLanes, halves.high);
    return halves;
}

// The same from memory, where `left` of them are.
template <class Input>
QW_INLINE Halves round_block(const Input* x, int64_t left, int8_t* numbers) {
    const V first = left > 0 ? load_some(x, left) : zero();
    return round_block(first, left > kLanes ? load_some(x + kLanes, left - kLanes) : zero(), numbers);
}

// One token's `in` numbers, block by block.
struct PlainRow {
    template <class Input>
    static void quantise(const Input* x, int64_t in, const CodedInputs& inputs, int64_t tile, int64_t row) {
        const int64_t rows = tile_rows(inputs, tile);
        for (int64_t block = 0; block < inputs.blocks; ++block) {
            const int64_t before = rows_before(inputs, tile, block);
            const Halves halves = round_block(x + block * kBlock, in - block * kBlock, inputs.numbers + (before + row) * kBlock);
            inputs.scales[before + row] = halves.scale;
            inputs.sums[2 * before + row] = sum(halves.low);
            inputs.sums[2 * before + rows + row] = sum(halves.high);
        }
    }
};

template <class Row>
void code_inputs(const qw_linear_arguments& a, const CodedInputs& inputs, int64_t tile) {
    for (int64_t row = 0; row < tile_rows(inputs, tile); ++row) {
        const int64_t at = input_row(a, tile * kTokenTile + row) * a.x_stride;
        if (a.type == QW_BF16) {
            Row::quantise(static_cast<const bf16*>(a.x) + at, a.weight->in, inputs, tile, row);
        } else {
            Row::quantise(static_cast<const float*>(a.x) + at, a.weight->in, inputs, tile, row);
        }
    }
}

void correct_inputs(const qw_weight_type& type, const CodedInputs& inputs, int64_t tile) {
    const int64_t rows = tile_rows(inputs, tile), parts = parts_of(type), before = rows_before(inputs, tile, 0);
    const int32_t* sums = inputs.sums + before * 2;
    int32_t* starts = static_cast<int32_t*>(inputs.corrections) + before * parts;
    float* floats = static_cast<float*>(inputs.corrections) + before * parts;
    const int32_t minus_zero = -zero_of(type);
    for (int64_t block = 0; block < inputs.blocks; ++block, sums += 2 * rows) {
        for (int64_t i = 0; i < parts * rows; ++i) {
            const int32_t here = parts == 1 ? sums[i] + sums[rows + i] : sums[i];
            if (type.has_min) {
                *floats++ = static_cast<float>(here);
            } else {
                *starts++ = minus_zero * here;
            }
        }
    }
}

}  // namespace
}  // namespace qwench
