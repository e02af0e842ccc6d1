// Attention of one new token over a segment of its paged context. Included once per instruction set, after simd.h.
//
// A context is cut into segments of fixed length, so that one long sequence occupies every thread; the partial results
// are merged in the order of the segments. Where the cuts lie depends on the position alone, never on the threads.

namespace qwench {
namespace {

constexpr int kHeads = 4;          // query heads that share one pass over a key head's cache
constexpr int kValueVectors = 4;   // vectors of a value that are summed in registers, times kHeads
constexpr int64_t kValueBlock = 32;  // positions whose values stay in the first cache while all their columns are summed

// A head's keys or values at the positions of a segment.
template <class T>
struct PagedRows {
    const T* cache;          // [tokens, kv_heads, head_dim], at the head
    const int64_t* offsets;  // elements from there, for each position of the segment

    QW_INLINE const T* at(int64_t i) const { return cache + offsets[i]; }
};

// scores[head][i] = query head . key i
template <class T>
void score_positions(const float* query, int64_t heads, int64_t head_dim, const PagedRows<T>& keys, int64_t count,
                     float (*scores)[kAttentionSegment]) {
    for (int64_t i = 0; i < count; ++i) {
        const T* key = keys.at(i);
        if (i + 2 < count) {
            const char* ahead = reinterpret_cast<const char*>(keys.at(i + 2));
            for (int64_t line = 0; line < head_dim * static_cast<int64_t>(sizeof(T)); line += 64) {
                __builtin_prefetch(ahead + line);
            }
        }
        V sums[kHeads] = {zero(), zero(), zero(), zero()};
        for (int64_t d = 0; d < head_dim; d += kLanes) {
            const V part = load_some(key + d, head_dim - d);
            for (int head = 0; head < kHeads; ++head) {
                sums[head] = fma(load(query + head * kAttentionWidth + d), part, sums[head]);
            }
        }
        for (int64_t head = 0; head < heads; ++head) scores[head][i] = sum(sums[head]);
    }
}

// scores <- e^(scores - their maximum), zeros up to a whole vector; the maximum and the sum.
void weigh(float* scores, int64_t count, float& maximum, float& total) {
    maximum = scores[0];
    for (int64_t i = 1; i < count; ++i) maximum = scores[i] > maximum ? scores[i] : maximum;
    V sums = zero();
    for (int64_t i = 0; i < count; i += kLanes) {
        const V weights = exponential(sub(load_some(scores + i, count - i), all(maximum)));
        store_some(scores + i, weights, count - i);
        sums = add(sums, load_some(scores + i, count - i));
    }
    total = sum(sums);
}

// output[head] += sum over positions of weight * value, for N vectors of columns.
template <class T, int N>
void add_values(const float (*weights)[kAttentionSegment], int64_t column, int64_t head_dim, const PagedRows<T>& values,
                int64_t begin, int64_t end, float* output) {
    V sums[kHeads][N];
    for (int head = 0; head < kHeads; ++head) {
        for (int n = 0; n < N; ++n) sums[head][n] = load(output + head * kAttentionWidth + column + n * kLanes);
    }
    for (int64_t i = begin; i < end; ++i) {
        const T* value = values.at(i) + column;
        for (int n = 0; n < N; ++n) {
            const V part = load_some(value + n * kLanes, head_dim - column - n * kLanes);
            for (int head = 0; head < kHeads; ++head) sums[head][n] = fma(all(weights[head][i]), part, sums[head][n]);
        }
    }
    for (int head = 0; head < kHeads; ++head) {
        for (int n = 0; n < N; ++n) store(output + head * kAttentionWidth + column + n * kLanes, sums[head][n]);
    }
}

// Up to kHeads query heads [heads, head_dim] of one row over one segment, into their partial results.
template <class T>
void attend_heads(const AttentionSegment& s, const T* query, int64_t heads, AttentionPartial* partials) {
    const qw_attention_arguments& a = *s.arguments;
    alignas(64) float scaled[kHeads * kAttentionWidth] = {};
    alignas(64) float scores[kHeads][kAttentionSegment] = {};
    alignas(64) float output[kHeads * kAttentionWidth] = {};
    for (int64_t head = 0; head < heads; ++head) {
        for (int64_t d = 0; d < a.head_dim; ++d) {
            scaled[head * kAttentionWidth + d] = widen(query[head * a.head_dim + d]) * a.scale;
        }
    }
    int64_t offsets[kAttentionSegment];
    const int64_t* pages = a.page_table + s.row * a.page_stride;
    for (int64_t i = 0; i < s.count; ++i) {
        const int64_t position = s.first + i;
        const int64_t slot = pages[position / a.page_size] * a.page_size + position % a.page_size;
        offsets[i] = slot * a.kv_heads * a.head_dim;
    }
    const PagedRows<T> keys = {static_cast<const T*>(a.keys) + s.kv_head * a.head_dim, offsets};
    const PagedRows<T> values = {static_cast<const T*>(a.values) + s.kv_head * a.head_dim, offsets};
    score_positions(scaled, heads, a.head_dim, keys, s.count, scores);
    for (int64_t head = 0; head < heads; ++head) {
        weigh(scores[head], s.count, partials[head].maximum, partials[head].total);
    }
    for (int64_t begin = 0; begin < s.count; begin += kValueBlock) {
        const int64_t end = begin + kValueBlock < s.count ? begin + kValueBlock : s.count;
        int64_t column = 0;
        for (; column + kValueVectors * kLanes <= a.head_dim; column += kValueVectors * kLanes) {
            add_values<T, kValueVectors>(scores, column, a.head_dim, values, begin, end, output);
        }
        for (; column < a.head_dim; column += kLanes) {
            add_values<T, 1>(scores, column, a.head_dim, values, begin, end, output);
        }
    }
    for (int64_t head = 0; head < heads; ++head) {
        std::memcpy(partials[head].output, output + head * kAttentionWidth, sizeof partials[head].output);
    }
}

template <class T>
void attend_group(const AttentionSegment& s, AttentionPartial* partials) {
    const qw_attention_arguments& a = *s.arguments;
    const int64_t group = a.query_heads / a.kv_heads;
    const T* query = static_cast<const T*>(a.query) + (s.row * a.query_heads + s.kv_head * group) * a.head_dim;
    for (int64_t head = 0; head < group; head += kHeads) {
        const int64_t heads = group - head < kHeads ? group - head : kHeads;
        attend_heads(s, query + head * a.head_dim, heads, partials + head);
    }
}

void attend(const AttentionSegment& s, AttentionPartial* partials) {
    if (s.arguments->type == QW_BF16) {
        attend_group<bf16>(s, partials);
    } else {
        attend_group<float>(s, partials);
    }
}

}  // namespace
}  // namespace qwench
