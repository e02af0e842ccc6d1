// Numbers -> codes, sixteen outputs side by side: weights/quantise.py operation by operation, so that the bits are the
// same. What is searched and why is said there; here is only how. CodeSums keep the order of its `_sum`.
#include <algorithm>
#include <cmath>

namespace qwench {
namespace {

constexpr int kCodes = 32;       // of a block, or of two where a block has half as many
constexpr int kHalf = kCodes / 2;
constexpr int kSuperBlocks = 8;  // of 32 codes in a super-block
constexpr float kLargestHalf = 65504.0f;
constexpr uint16_t kNoHalf = 0x7e00;  // not a number: what broken weights get for a scale
constexpr float kLeastInverted = 1.1754943508222875e-38f;
constexpr double kSteps[] = {-0.6, -0.2, 0.2, 0.6, 1.0};
constexpr double kCuts[][2] = {{-0.1, -0.1}, {0.2, 0.2}, {0.5, 0.5}, {-0.1, 0.5}, {0.5, -0.1}};

using Numbers = const float (*)[kLanes];  // of sixteen outputs, depth by depth

// A block of sixteen outputs, and what was found for it.
struct Block {
    float numbers[kCodes][kLanes];
    float codes[kCodes][kLanes];
};

QW_INLINE V absolute(V a) { return most(a, sub(zero(), a)); }
QW_INLINE V within(V a, float low, float high) { return least(most(a, all(low)), all(high)); }
QW_INLINE V inverse(V a) {
    return choose_greater(all(kLeastInverted), absolute(a), zero(), div(all(1.0f), a));
}
QW_INLINE V twice(V a) { return mul(all(2.0f), a); }

// `each(i)` for i in [0, kCount), summed in four chains.
template <int kCount, class Each>
QW_INLINE V chained(Each each) {
    V chains[4] = {each(0), each(1), each(2), each(3)};
    for (int i = 4; i < kCount; i += 4) {
        for (int c = 0; c < 4; ++c) chains[c] = add(chains[c], each(i + c));
    }
    return add(add(chains[0], chains[1]), add(chains[2], chains[3]));
}

// What a number rounds to as a half, which is kept at `to`.
QW_INLINE V as_half(V a, uint16_t* to) {
    store_half(to, add(within(a, -kLargestHalf, kLargestHalf), zero()));
    return load_half(to);
}

struct CodeSums {
    V values, products, squares;
};

// Sums over the codes `value(number)`.
template <int kCount, class Value>
QW_INLINE CodeSums sums_of(Numbers numbers, Value value) {
    V values[4], products[4], squares[4];
    for (int i = 0; i < kCount; i += 4) {
        for (int c = 0; c < 4; ++c) {
            const V number = load(numbers[i + c]), code = value(number);
            const V product = mul(code, number), square = mul(code, code);
            values[c] = i == 0 ? code : add(values[c], code);
            products[c] = i == 0 ? product : add(products[c], product);
            squares[c] = i == 0 ? square : add(squares[c], square);
        }
    }
    const auto both = [](const V(&chains)[4]) { return add(add(chains[0], chains[1]), add(chains[2], chains[3])); };
    return {both(values), both(products), both(squares)};
}

struct Range {
    V low, high, broken;  // not a number in `broken` where a number is none or infinite
};

template <int kCount>
QW_INLINE Range range_of(Numbers numbers) {
    Range range = {load(numbers[0]), load(numbers[0]), zero()};
    for (int i = 0; i < kCount; ++i) {
        const V number = load(numbers[i]);
        range.low = least(range.low, number);
        range.high = most(range.high, number);
        range.broken = add(range.broken, mul(number, zero()));
    }
    return range;
}

// The number farthest from zero.
QW_INLINE V largest_of(const Range& range) {
    return choose_greater(range.high, sub(zero(), range.low), range.high, range.low);
}

QW_INLINE V signed_code(V number, V inverted, float middle) {
    return within(add(whole(mul(number, inverted)), all(middle)), 0.0f, 2.0f * middle - 1.0f);
}

// The best scale found for codes on both sides of zero, at first `best`.
template <int kCount>
QW_INLINE V best_scale(Numbers numbers, V largest, float middle, V best) {
    V best_gain = all(-1.0f);
    for (const double step : kSteps) {
        const V inverted = mul(inverse(largest), all(static_cast<float>(-(middle + step))));
        const auto code = [&](V number) { return within(whole(mul(number, inverted)), -middle, middle - 1.0f); };
        const CodeSums sums = sums_of<kCount>(numbers, code);
        const V scale = mul(sums.products, inverse(sums.squares)), gain = mul(sums.products, scale);
        best = choose_greater(gain, best_gain, scale, best);
        best_gain = choose_greater(gain, best_gain, gain, best_gain);
    }
    return best;
}

template <int kCount>
QW_INLINE V signed_error(Numbers numbers, V scale, float middle) {
    const V inverted = inverse(scale);
    return chained<kCount>([&](int i) {
        const V number = load(numbers[i]);
        const V off = sub(mul(sub(signed_code(number, inverted, middle), all(middle)), scale), number);
        return mul(off, off);
    });
}

template <int kCount>
QW_INLINE void put_signed(Numbers numbers, V scale, float middle, float (*codes)[kLanes]) {
    const V inverted = inverse(scale);
    for (int i = 0; i < kCount; ++i) store(codes[i], signed_code(load(numbers[i]), inverted, middle));
}

// One scale a block, codes on both sides of zero. `scales` are sixteen halves.
void round_signed(Block& block, float middle, uint16_t* scales) {
    const Range range = range_of<kCodes>(block.numbers);
    uint16_t plain_halves[kLanes], found_halves[kLanes];
    const V largest = largest_of(range), plain = as_half(div(largest, all(-middle)), plain_halves);
    const V found = as_half(best_scale<kCodes>(block.numbers, largest, middle, plain), found_halves);
    const V plain_error = signed_error<kCodes>(block.numbers, plain, middle);
    const V wins = choose_greater(plain_error, signed_error<kCodes>(block.numbers, found, middle), all(1.0f), zero());
    put_signed<kCodes>(block.numbers, choose_greater(wins, zero(), found, plain), middle, block.codes);
    float won[kLanes], broken[kLanes];
    store(won, wins);
    store(broken, range.broken);
    for (int o = 0; o < kLanes; ++o) {
        scales[o] = broken[o] != 0.0f ? kNoHalf : won[o] > 0.0f ? found_halves[o] : plain_halves[o];
    }
}

// The nearest of 0 1 2 3 4 6 8 12: whole numbers below 2, and above it floats with one bit behind the point.
QW_INLINE float four_bit(float size) {
    uint32_t bits;
    std::memcpy(&bits, &size, sizeof bits);
    bits = (bits + (1U << 21)) & ~((1U << 22) - 1);
    float one_bit;
    std::memcpy(&one_bit, &bits, sizeof one_bit);
    const float value = size < 2.0f ? std::nearbyint(size) : one_bit;
    return value > 12.0f ? 12.0f : value;
}

// Four-bit floats under a power of two. `scales` are sixteen BF16.
void round_table(Block& block, bf16* scales) {
    float sizes[kCodes][kLanes], values[kCodes][kLanes], largest[kLanes], broken[kLanes];
    store(broken, range_of<kCodes>(block.numbers).broken);
    V most_of = zero();
    for (int i = 0; i < kCodes; ++i) {
        store(sizes[i], absolute(load(block.numbers[i])));
        most_of = most(most_of, load(sizes[i]));
    }
    store(largest, most_of);
    V best = zero(), best_error = all(INFINITY);
    for (int step = -1; step <= 1; ++step) {
        float scale_of[kLanes];
        for (int o = 0; o < kLanes; ++o) {
            int exponent = 0;
            if (broken[o] == 0.0f) std::frexp(largest[o], &exponent);
            exponent = std::min(std::max(exponent - 4 + step, -120), 120);
            scale_of[o] = std::ldexp(1.0f, exponent);
        }
        const V scale = load(scale_of), inverted = div(all(1.0f), scale);
        float tried[kCodes][kLanes];
        for (int i = 0; i < kCodes; ++i) {
            store(tried[i], mul(load(sizes[i]), inverted));
            for (int o = 0; o < kLanes; ++o) tried[i][o] = four_bit(tried[i][o]);
        }
        const V error = chained<kCodes>([&](int i) {
            const V off = sub(mul(load(tried[i]), scale), load(sizes[i]));
            return mul(off, off);
        });
        for (int i = 0; i < kCodes; ++i) store(values[i], choose_greater(best_error, error, load(tried[i]), load(values[i])));
        best = choose_greater(best_error, error, scale, best);
        best_error = choose_greater(best_error, error, error, best_error);
    }
    for (int i = 0; i < kCodes; ++i) {
        for (int o = 0; o < kLanes; ++o) {
            const float value = values[i][o];  // 0 1 2 3 4 6 8 12 are numbered from 0
            const float place = value <= 4.0f ? value : value == 6.0f ? 5.0f : value == 8.0f ? 6.0f : 7.0f;
            block.codes[i][o] = block.numbers[i][o] < 0.0f ? place + 8.0f : place;
        }
    }
    store(scales, add(best, load(broken)));
}

// Scales or mins of a super-block: whole numbers under a half. `parts` are the numbers, `wholes` what they stand for.
struct Nested {
    float parts[2 * kSuperBlocks][kLanes], wholes[2 * kSuperBlocks][kLanes];
    uint16_t super[kLanes];
};

template <int kCount>
void nest(const V (&values)[kCount], float top, Nested& to) {
    V largest = absolute(values[0]);
    for (const V& each : values) largest = most(largest, absolute(each));
    const V super = as_half(div(largest, all(top)), to.super), inverted = inverse(super);
    for (int b = 0; b < kCount; ++b) {
        const V part = within(whole(mul(values[b], inverted)), -top, top);
        store(to.parts[b], part);
        store(to.wholes[b], mul(part, super));
    }
}

struct Super {
    Nested scales, mins;
};

// A scale for each half of a block, nested. `found` where `wins` is above 0, else `plain`. Codes stay in the blocks.
void round_nested_signed(Block* blocks, float middle, Super& plain, Super& found, float* wins, float* broken) {
    constexpr int kParts = 2 * kSuperBlocks;
    V largest[kParts], scales[kParts], plain_errors[kParts], errors[kParts], bad = zero();
    const auto numbers = [&](int p) -> Numbers { return blocks[p / 2].numbers + p % 2 * kHalf; };
    for (int p = 0; p < kParts; ++p) {
        const Range range = range_of<kHalf>(numbers(p));
        bad = add(bad, range.broken);
        largest[p] = largest_of(range);
        scales[p] = div(largest[p], all(-middle));
    }
    nest(scales, 127.0f, plain.scales);
    for (int p = 0; p < kParts; ++p) {
        scales[p] = best_scale<kHalf>(numbers(p), largest[p], middle, load(plain.scales.wholes[p]));
    }
    nest(scales, 127.0f, found.scales);
    for (int p = 0; p < kParts; ++p) {
        plain_errors[p] = signed_error<kHalf>(numbers(p), load(plain.scales.wholes[p]), middle);
        errors[p] = signed_error<kHalf>(numbers(p), load(found.scales.wholes[p]), middle);
    }
    const V plain_error = chained<kParts>([&](int p) { return plain_errors[p]; });
    const V better = choose_greater(plain_error, chained<kParts>([&](int p) { return errors[p]; }), all(1.0f), zero());
    for (int p = 0; p < kParts; ++p) {
        const V scale = choose_greater(better, zero(), load(found.scales.wholes[p]), load(plain.scales.wholes[p]));
        put_signed<kHalf>(numbers(p), scale, middle, blocks[p / 2].codes + p % 2 * kHalf);
    }
    store(wins, better);
    store(broken, bad);
}

QW_INLINE V line_code(V number, V shift, V inverted, float top) {
    return within(whole(mul(add(number, shift), inverted)), 0.0f, top);
}

// Scale and min of one block, not rounded: the best of several first guesses, refined once.
void best_line(const Block& block, const Range& range, float top, V& scale, V& shift) {
    const V total = chained<kCodes>([&](int i) { return load(block.numbers[i]); });
    const V level = div(sub(range.high, range.low), all(top)), lowest = sub(zero(), range.low), count = all(kCodes);
    scale = level;
    shift = lowest;
    V best = all(-INFINITY);
    const auto consider = [&](const CodeSums& sums) {
        const V spread = sub(mul(count, sums.squares), mul(sums.values, sums.values));
        V slope = mul(sub(mul(count, sums.products), mul(sums.values, total)), inverse(spread));
        const V offset = most(div(sub(mul(slope, sums.values), total), count), zero());
        slope = choose_greater(offset, zero(), slope, mul(sums.products, inverse(sums.squares)));
        V gain = sub(mul(twice(slope), sums.products), mul(twice(offset), total));
        gain = sub(gain, mul(mul(slope, slope), sums.squares));
        gain = add(gain, sub(mul(mul(twice(slope), offset), sums.values), mul(count, mul(offset, offset))));
        scale = choose_greater(gain, best, slope, scale);
        shift = choose_greater(gain, best, offset, shift);
        best = choose_greater(gain, best, gain, best);
    };
    for (const auto& cut : kCuts) {
        const V inverted = inverse(mul(level, all(static_cast<float>((top - (cut[0] + cut[1])) / top))));
        const V from = sub(lowest, mul(level, all(static_cast<float>(cut[0]))));
        consider(sums_of<kCodes>(block.numbers, [&](V number) { return line_code(number, from, inverted, top); }));
    }
    const V inverted = inverse(scale), last = shift;
    consider(sums_of<kCodes>(block.numbers, [&](V number) { return line_code(number, last, inverted, top); }));
}

QW_INLINE V line_error(const Block& block, V scale, V shift, float top) {
    const V inverted = inverse(scale);
    return chained<kCodes>([&](int i) {
        const V number = load(block.numbers[i]), code = line_code(number, shift, inverted, top);
        const V off = sub(sub(mul(code, scale), shift), number);
        return mul(off, off);
    });
}

V super_error(const Block* blocks, const Super& super, float top) {
    V each[kSuperBlocks];
    for (int b = 0; b < kSuperBlocks; ++b) {
        each[b] = line_error(blocks[b], load(super.scales.wholes[b]), load(super.mins.wholes[b]), top);
    }
    return chained<kSuperBlocks>([&](int b) { return each[b]; });
}

// A scale and a min a block of a super-block: `found` where `wins` is above 0, else `plain`. Codes stay in the blocks.
void round_affine(Block* blocks, float top, Super& plain, Super& found, float* wins, float* broken) {
    V scales[kSuperBlocks], shifts[kSuperBlocks], bad = zero();
    Range ranges[kSuperBlocks];
    for (int b = 0; b < kSuperBlocks; ++b) {
        ranges[b] = range_of<kCodes>(blocks[b].numbers);
        ranges[b].low = least(ranges[b].low, zero());
        bad = add(bad, ranges[b].broken);
        scales[b] = div(sub(ranges[b].high, ranges[b].low), all(top));
        shifts[b] = sub(zero(), ranges[b].low);
    }
    nest(scales, 127.0f, plain.scales);
    nest(shifts, 255.0f, plain.mins);
    for (int b = 0; b < kSuperBlocks; ++b) best_line(blocks[b], ranges[b], top, scales[b], shifts[b]);
    nest(scales, 127.0f, found.scales);
    for (int b = 0; b < kSuperBlocks; ++b) {
        const V scale = load(found.scales.wholes[b]), inverted = inverse(scale), shift = shifts[b];
        const V values = chained<kCodes>([&](int i) { return line_code(load(blocks[b].numbers[i]), shift, inverted, top); });
        const V total = chained<kCodes>([&](int i) { return load(blocks[b].numbers[i]); });
        shifts[b] = most(div(sub(mul(scale, values), total), all(kCodes)), zero());
    }
    nest(shifts, 255.0f, found.mins);
    const V better = choose_greater(super_error(blocks, plain, top), super_error(blocks, found, top), all(1.0f), zero());
    for (int b = 0; b < kSuperBlocks; ++b) {
        const V scale = choose_greater(better, zero(), load(found.scales.wholes[b]), load(plain.scales.wholes[b]));
        const V shift = choose_greater(better, zero(), load(found.mins.wholes[b]), load(plain.mins.wholes[b]));
        const V inverted = inverse(scale);
        for (int i = 0; i < kCodes; ++i) {
            store(blocks[b].codes[i], line_code(load(blocks[b].numbers[i]), shift, inverted, top));
        }
    }
    store(wins, better);
    store(broken, bad);
}

// Numbers [at, at + 32) of up to sixteen rows, sideways; zeros behind their ends.
void gather_numbers(const qw_round_arguments& a, int64_t first, int64_t count, int64_t at, Block& block) {
    float rows[kLanes][kCodes] = {};
    const int64_t left = std::min<int64_t>(kCodes, a.in - at), size = a.element == QW_F32 ? 4 : 2;
    for (int64_t o = 0; o < count && left > 0; ++o) {
        alignas(64) char stored[kCodes * 4] = {};
        const char* from = static_cast<const char*>(a.source) + ((first + o) * a.source_stride + at) * size;
        std::memcpy(stored, from, static_cast<size_t>(left * size));
        for (int half = 0; half < 2; ++half) {
            const char* part = stored + half * kLanes * size;
            V values = zero();
            if (a.element == QW_F32) values = load(reinterpret_cast<const float*>(part));
            if (a.element == QW_BF16) values = load(reinterpret_cast<const bf16*>(part));
            if (a.element == QW_F16) values = load_half(part);
            store(rows[o] + half * kLanes, values);
        }
    }
    for (int half = 0; half < 2; ++half) {
        const char* starts[kLanes];
        for (int o = 0; o < kLanes; ++o) starts[o] = reinterpret_cast<const char*>(rows[o] + half * kLanes);
        transpose_words(starts, reinterpret_cast<uint32_t*>(block.numbers[half * kLanes]), kLanes);
    }
}

void put_codes(const Block& block, int64_t count, int64_t depth, uint8_t* to) {
    uint8_t bytes[kLanes][kCodes];
    for (int i = 0; i < kCodes; i += 4) {
        I words = to_whole(load(block.codes[i + 3]));
        for (int j = 2; j >= 0; --j) words = add(mul(words, all_whole(256)), to_whole(load(block.codes[i + j])));
        int32_t each[kLanes];
        store_whole(each, words);
        for (int o = 0; o < kLanes; ++o) std::memcpy(bytes[o] + i, &each[o], 4);
    }
    for (int64_t o = 0; o < count; ++o) std::memcpy(to + o * depth, bytes[o], kCodes);
}

template <class T>
T* row_of(void* array, int64_t first, int64_t columns, int64_t at) {
    return static_cast<T*>(array) + first * columns + at;
}

void round_super(const qw_round_arguments& a, int64_t first, int64_t count, int64_t super, int64_t supers) {
    Block blocks[kSuperBlocks];
    Super plain, found;
    float wins[kLanes], broken[kLanes];
    const int64_t each = kSuperBlocks * parts_of(*a.type), depth = supers * kSuperBlocks * kCodes;
    for (int b = 0; b < kSuperBlocks; ++b) gather_numbers(a, first, count, (super * kSuperBlocks + b) * kCodes, blocks[b]);
    if (a.type->has_min) {
        round_affine(blocks, static_cast<float>((1 << a.type->bits) - 1), plain, found, wins, broken);
    } else {
        round_nested_signed(blocks, static_cast<float>(a.type->zero), plain, found, wins, broken);
    }
    for (int b = 0; b < kSuperBlocks; ++b) {
        put_codes(blocks[b], count, depth, row_of<uint8_t>(a.codes, first, depth, (super * kSuperBlocks + b) * kCodes));
    }
    for (int64_t o = 0; o < count; ++o) {
        const Super& won = wins[o] > 0.0f ? found : plain;
        for (int64_t p = 0; p < each; ++p) {
            const int64_t columns = supers * each, at = super * each + p;
            *row_of<int8_t>(a.scales, first + o, columns, at) = static_cast<int8_t>(won.scales.parts[p][o]);
            if (a.type->has_min) *row_of<uint8_t>(a.mins, first + o, columns, at) = static_cast<uint8_t>(won.mins.parts[p][o]);
        }
        *row_of<uint16_t>(a.super_scales, first + o, supers, super) = broken[o] != 0.0f ? kNoHalf : won.scales.super[o];
        if (!a.type->has_min) continue;
        *row_of<uint16_t>(a.super_mins, first + o, supers, super) = broken[o] != 0.0f ? kNoHalf : won.mins.super[o];
    }
}

void round_rows(const qw_round_arguments& a, int64_t first, int64_t count) {
    const int64_t blocks = num_blocks(*a.type, a.in), depth = blocks * kCodes;
    if (a.type->nested) {
        for (int64_t super = 0; super < blocks / kSuperBlocks; ++super) round_super(a, first, count, super, blocks / kSuperBlocks);
        return;
    }
    for (int64_t b = 0; b < blocks; ++b) {
        Block block;
        uint16_t scales[kLanes];
        bf16 powers[kLanes];
        gather_numbers(a, first, count, b * kCodes, block);
        if (a.type->has_table) {
            round_table(block, powers);
        } else {
            round_signed(block, static_cast<float>(a.type->zero), scales);
        }
        put_codes(block, count, depth, row_of<uint8_t>(a.codes, first, depth, b * kCodes));
        for (int64_t o = 0; o < count; ++o) {
            *row_of<uint16_t>(a.scales, first + o, blocks, b) = a.type->has_table ? powers[o].bits : scales[o];
        }
    }
}

}  // namespace
}  // namespace qwench
