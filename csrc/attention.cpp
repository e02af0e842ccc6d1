// Attention of single tokens: divides contexts into segments and merges what was found in them.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "bf16.h"
#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

// Every page that a row reads exists, and every row sees something.
bool pages_exist(const qw_attention_arguments& a) {
    for (int64_t row = 0; row < a.rows; ++row) {
        const int64_t pages = divide_up(a.contexts[row], a.page_size);
        if (a.contexts[row] < 1 || pages > a.page_stride) return false;
        if (!all_within(a.page_table + row * a.page_stride, pages, a.num_pages)) return false;
    }
    return true;
}

// One query head's partial results, segment after segment, into its output.
template <class T>
void merge_partials(const AttentionPartial* partials, int64_t segments, int64_t stride, int64_t head_dim, T* output) {
    float maximum = partials->maximum, total = 0.0f;
    for (int64_t i = 1; i < segments; ++i) maximum = std::max(maximum, partials[i * stride].maximum);
    float sums[kAttentionWidth] = {};
    for (int64_t i = 0; i < segments; ++i) {
        const AttentionPartial& partial = partials[i * stride];
        const float factor = std::exp(partial.maximum - maximum);
        total += factor * partial.total;
        for (int64_t d = 0; d < head_dim; ++d) sums[d] += factor * partial.output[d];
    }
    for (int64_t d = 0; d < head_dim; ++d) {
        if constexpr (std::is_same_v<T, bf16>) {
            output[d] = narrow(sums[d] / total);
        } else {
            output[d] = sums[d] / total;
        }
    }
}

}  // namespace

int32_t qw_attention_step(qw_context* context, const qw_attention_arguments* arguments) {
    const qw_attention_arguments& a = *arguments;
    if (!pages_exist(a)) return 1;
    const int64_t longest = a.rows == 0 ? 0 : *std::max_element(a.contexts, a.contexts + a.rows);
    const int64_t segments = divide_up(longest, kAttentionSegment), group = a.query_heads / a.kv_heads;
    // Partials [rows, kv_heads, segments, group].
    const int64_t size = a.rows * a.query_heads * segments * static_cast<int64_t>(sizeof(AttentionPartial));
    AttentionPartial* partials = static_cast<AttentionPartial*>(context->partials.reserve(size));
    if (partials == nullptr && size > 0) return 2;
    context->pool.run(a.rows * a.kv_heads * segments, [&](int64_t task) {
        const int64_t head = task / segments % a.kv_heads, row = task / segments / a.kv_heads;
        const int64_t first = task % segments * kAttentionSegment;
        const int64_t count = std::min(kAttentionSegment, a.contexts[row] - first);
        if (count > 0) context->kernels->attend({arguments, row, head, first, count}, partials + task * group);
    });
    context->pool.run(a.rows * a.kv_heads, [&](int64_t task) {
        const int64_t used = divide_up(a.contexts[task / a.kv_heads], kAttentionSegment);
        for (int64_t head = 0; head < group; ++head) {
            const AttentionPartial* first = partials + task * segments * group + head;
            const int64_t place = (task * group + head) * a.head_dim;
            if (a.type == QW_BF16) {
                merge_partials(first, used, group, a.head_dim, static_cast<bf16*>(a.output) + place);
            } else {
                merge_partials(first, used, group, a.head_dim, static_cast<float*>(a.output) + place);
            }
        }
    });
    return 0;
}
