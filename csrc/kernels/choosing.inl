// Passes over one row of logits: its largest number, its `count` largest, and the weights e^((logit - maximum) /
// temperature) in doubles. Included once per instruction set, after simd.h.

namespace qwench {
namespace {

constexpr int64_t kScanned = 8 * kLanes;  // logits that are passed by at once where none of them matters

// The largest of `count` logits; `bad` becomes NaN where one is not finite.
QW_INLINE float scan(const float* logits, int64_t count, V& bad) {
    V seen = all(-__builtin_huge_valf());
    if (count == kScanned) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kScanned; i += kLanes) {
            const V each = load(logits + i);
            bad = fma(each, zero(), bad);
            seen = most(each, seen);
        }
        return largest(seen);
    }
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t left = count - i;
        const V each = load_some(logits + i, left);
        bad = fma(each, zero(), bad);
        seen = most(left < kLanes ? first_lanes(each, seen, left) : each, seen);
    }
    return largest(seen);
}

// The place of the largest, the first of equals; -1 where one is not finite.
int64_t find_largest(const float* logits, int64_t count) {
    V bad = zero();
    float best = -__builtin_huge_valf();
    int64_t block = 0;
    for (int64_t first = 0; first < count; first += kScanned) {
        const float found = scan(logits + first, count - first < kScanned ? count - first : kScanned, bad);
        if (found > best) {
            best = found;
            block = first;
        }
    }
    if (!(sum(bad) == 0.0f)) return -1;
    while (logits[block] != best) ++block;
    return block;
}

// Candidates for the `count` largest of logits [first, last), among equals those of lower places; unordered. At most
// 2 * count + kTrial of them.
int64_t gather_top(const float* logits, int64_t first, int64_t last, int64_t count, Candidate* found,
                   void (*keep)(Candidate* candidates, int64_t size, int64_t count)) {
    int64_t size = 0;
    for (; first < last && size < count + kTrial; ++first) found[size++] = {logits[first], first};
    if (size <= count) return size;
    keep(found, size, count);
    size = count;
    float threshold = found[count - 1].logit;
    V bad = zero();
    for (; first < last; first += kScanned) {
        const int64_t scanned = last - first < kScanned ? last - first : kScanned;
        if (!(scan(logits + first, scanned, bad) > threshold)) continue;
        for (int64_t i = first; i < first + scanned; ++i) {
            if (!(logits[i] > threshold)) continue;
            found[size++] = {logits[i], i};
            if (size < 2 * count + kScanned) continue;
            keep(found, size, count);
            size = count;
            threshold = found[count - 1].logit;
        }
    }
    return size;
}

// e^x for x <= 0 in doubles, within a few units in the last place; 0 below e^-700. Plain arithmetic that a compiler
// makes vectors of: x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series up to r^13 / 13!.
QW_INLINE double exponential(double x) {
    constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number in the low bits
    const double bounded = x > -700.0 ? x : -700.0;
    const double shifted = bounded * 1.4426950408889634 + kWhole, n = shifted - kWhole;
    const double r = (bounded - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double series = 1.0 / 6227020800.0;
    series = series * r + 1.0 / 479001600.0;
    series = series * r + 1.0 / 39916800.0;
    series = series * r + 1.0 / 3628800.0;
    series = series * r + 1.0 / 362880.0;
    series = series * r + 1.0 / 40320.0;
    series = series * r + 1.0 / 5040.0;
    series = series * r + 1.0 / 720.0;
    series = series * r + 1.0 / 120.0;
    series = series * r + 1.0 / 24.0;
    series = series * r + 1.0 / 6.0;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    uint64_t bits, power;
    std::memcpy(&bits, &series, sizeof bits);
    std::memcpy(&power, &shifted, sizeof power);
    bits += power << 52;
    std::memcpy(&series, &bits, sizeof bits);
    return x > -700.0 ? series : 0.0;
}

// weights [count] of logits: zero where they are below `floor`. Their sum, in a fixed order.
double weigh_logits(const float* logits, int64_t count, const Weighing& weighing, double* weights) {
    for (int64_t i = 0; i < count; ++i) {
        const double weight = exponential((static_cast<double>(logits[i]) - weighing.maximum) * weighing.sharpness);
        weights[i] = weight >= weighing.floor ? weight : 0.0;
    }
    double sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] += weights[i + lane];
    }
    for (; i < count; ++i) sums[0] += weights[i];
    double total = 0.0;
    for (const double each : sums) total += each;
    return total;
}

}  // namespace
}  // namespace qwench
