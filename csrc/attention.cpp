// Attention over a paged cache: stores what is new, divides rows into blocks of tokens or segments of the context, and
// merges what was found in segments.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "bf16.h"
#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

constexpr int64_t kBlockRows = 4 * kAttentionRows;  // pairs of a token and a head that share a packed segment
constexpr int64_t kShortRows = 32;    // a row of so few is divided along its context instead of its tokens
constexpr int64_t kLeastTokens = 8;   // of a block
constexpr int64_t kTasksPerThread = 4;     // of long rows
constexpr int64_t kStreamsPerThread = 8;   // of short rows
constexpr int64_t kStoredTokens = 64;  // of one task

struct Plan {
    const qw_attention_arguments& a;
    int64_t group;     // query heads of a key head
    int64_t block;     // tokens of a block of a long row
    int64_t together;  // segments of a task of a short row: one stream, read by one thread

    Plan(const qw_attention_arguments& arguments, int64_t threads)
        : a(arguments), group(a.query_heads / a.kv_heads) {
        int64_t longest = 0, shorts = 0;
        for (int64_t row = 0; row < a.rows; ++row) {
            longest += is_short(row) ? 0 : length(row);
            shorts += is_short(row) ? segments(row) : 0;
        }
        const int64_t most = std::max<int64_t>(1, kBlockRows / group);
        const int64_t wanted = divide_up(longest * a.kv_heads, kTasksPerThread * threads);
        block = std::min(most, std::max(kLeastTokens, wanted));
        together = std::max<int64_t>(1, shorts * a.kv_heads / (kStreamsPerThread * threads));
    }

    int64_t length(int64_t row) const { return a.starts[row + 1] - a.starts[row]; }
    bool is_short(int64_t row) const { return length(row) * group <= kShortRows; }
    int64_t segments(int64_t row) const { return divide_up(a.contexts[row], kAttentionSegment); }
    int64_t units(int64_t row) const {
        return is_short(row) ? divide_up(segments(row), together) : divide_up(length(row), block);
    }
    int64_t tasks(int64_t row) const { return length(row) == 0 ? 0 : a.kv_heads * units(row); }
    // Partials that a short row leaves: [segments, kv_heads, tokens, group].
    int64_t partials(int64_t row) const { return is_short(row) ? segments(row) * partial_stride(row) : 0; }
    int64_t partial_stride(int64_t row) const { return a.kv_heads * length(row) * group; }
};

// Every page, slot and position that is read or written exists.
bool all_exist(const qw_attention_arguments& a) {
    if (a.page_size % kTilePositions != 0) return false;
    for (int64_t row = 0; row < a.rows; ++row) {
        const int64_t length = a.starts[row + 1] - a.starts[row], pages = divide_up(a.contexts[row], a.page_size);
        if (length < 0 || a.contexts[row] < std::max<int64_t>(1, length) || pages > a.page_stride) return false;
        if (!all_within(a.page_table + row * a.page_stride, pages, a.num_pages)) return false;
    }
    return all_within(a.kv_slots, a.rows == 0 ? 0 : a.starts[a.rows], a.num_pages * a.page_size);
}

template <class T>
T* tile_at(const qw_attention_arguments& a, void* cache, int64_t slot, int64_t head) {
    char* tiles = static_cast<char*>(cache);
    return reinterpret_cast<T*>(tiles + (slot / kTilePositions * a.kv_heads + head) * cache_tile_bytes(a));
}

// A head of a token, as it is kept: codes and their scale, or its numbers as they are.
template <class T>
struct Coded {
    int8_t elements[QW_ATTENTION_WIDTH];
    float scale;

    Coded(const T* from, int64_t width) {
        float most = 0;
        for (int64_t i = 0; i < width; ++i) {
            const float size = std::fabs(widen(from[i]));
            most = size <= most ? most : size;  // a NaN stays: nothing is above it
        }
        scale = most / 127.0f;
        constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers, ties to even
        const bool finite = most > 0 && most - most == 0;
        for (int64_t i = 0; i < width; ++i) {
            elements[i] = finite ? static_cast<int8_t>(widen(from[i]) / scale + kRounder - kRounder) : int8_t{0};
        }
    }
};

// Elements of type T into the place of position `slot` % kTilePositions; zeros behind the width of a key, which is depth.
template <class T>
void store_head(const T* key, const T* value, int64_t width, bool pairs, int64_t slot, T* keys, T* values) {
    const int64_t position = slot % kTilePositions;
    for (int64_t i = 0; i < width; ++i) keys[key_place(pairs, position, i)] = key[i];
    for (int64_t i = width; i < kept_width(width); ++i) keys[key_place(pairs, position, i)] = T{};
    for (int64_t i = 0; i < width; ++i) values[value_place(pairs, width, position, i)] = value[i];
}

template <class T>
void store_token(const qw_attention_arguments& a, int64_t token) {
    const int64_t slot = a.kv_slots[token], width = a.head_dim;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
        const T* key = static_cast<const T*>(a.key) + token * a.key_stride + head * width;
        const T* value = static_cast<const T*>(a.value) + token * a.value_stride + head * width;
        if (!a.coded) {
            T* keys = tile_at<T>(a, a.keys, slot, head);
            store_head(key, value, width, std::is_same_v<T, bf16>, slot, keys, tile_at<T>(a, a.values, slot, head));
            continue;
        }
        const Coded<T> coded_key(key, width), coded_value(value, width);
        int8_t* keys = tile_at<int8_t>(a, a.keys, slot, head);
        int8_t* values = tile_at<int8_t>(a, a.values, slot, head);
        store_head(coded_key.elements, coded_value.elements, width, true, slot, keys, values);
        const int64_t place = tile_elements(width) + slot % kTilePositions * 4;
        std::memcpy(keys + place, &coded_key.scale, 4);
        std::memcpy(values + place, &coded_value.scale, 4);
    }
}

AttentionScratch take_scratch(Layout& layout, const qw_attention_arguments& a, int64_t rows) {
    const bool pairs = a.type == QW_BF16 || a.coded;
    const int64_t tile = tile_elements(a.head_dim) * (pairs ? 2 : 4), tiles = kAttentionSegment / kTilePositions;
    AttentionScratch scratch = {};
    scratch.keys = layout.take<char>(a.coded ? tiles * tile : 0);
    scratch.values = layout.take<char>(a.coded ? tiles * tile : tile);
    scratch.queries = layout.take<float>(round_up(rows, kAttentionRows) * padded_depth(pairs, a.head_dim));
    scratch.weights = layout.take<float>(kAttentionRows * kAttentionSegment);
    scratch.scores = layout.take<float>(kAttentionRows * kAttentionSegment);
    scratch.products = layout.take<float>(kAttentionRows * kAttentionWidth);
    scratch.partials = layout.take<AttentionPartial>(rows);
    return scratch;
}

// The rows' tasks and partials, counted up to each row.
struct Bounds {
    int64_t* tasks;     // [rows + 1]
    int64_t* partials;  // [rows + 1]

    Bounds(Layout& layout, int64_t rows) : tasks(layout.take<int64_t>(rows + 1)), partials(layout.take<int64_t>(rows + 1)) {}

    void count(const Plan& plan) const {
        tasks[0] = partials[0] = 0;
        for (int64_t row = 0; row < plan.a.rows; ++row) {
            tasks[row + 1] = tasks[row] + plan.tasks(row);
            partials[row + 1] = partials[row] + plan.partials(row);
        }
    }
};

AttentionTask find_task(const Plan& plan, const Bounds& bounds, int64_t index, AttentionPartial* partials) {
    const qw_attention_arguments& a = plan.a;
    AttentionTask task = {};
    task.arguments = &a;
    task.row = std::upper_bound(bounds.tasks, bounds.tasks + a.rows + 1, index) - bounds.tasks - 1;
    const int64_t local = index - bounds.tasks[task.row], unit = local / a.kv_heads;
    const int64_t length = plan.length(task.row);
    task.kv_head = local % a.kv_heads;
    if (plan.is_short(task.row)) {
        task.last_token = length;
        task.first_segment = unit * plan.together;
        task.last_segment = std::min(plan.segments(task.row), task.first_segment + plan.together);
        task.partial_stride = plan.partial_stride(task.row);
        const int64_t before = task.first_segment * task.partial_stride + task.kv_head * length * plan.group;
        task.scratch.partials = partials + bounds.partials[task.row] + before;
        task.finishes = plan.segments(task.row) == 1;
    } else {
        task.first_token = unit * plan.block;
        task.last_token = std::min(length, task.first_token + plan.block);
        task.last_segment = divide_up(a.contexts[task.row] - length + task.last_token, kAttentionSegment);
        task.finishes = true;
    }
    return task;
}

// The partials of a short row and one of its key heads become outputs.
void merge_row(const Kernels& kernels, const Plan& plan, int64_t row, int64_t kv_head, AttentionPartial* partials) {
    const qw_attention_arguments& a = plan.a;
    const int64_t length = plan.length(row), rows = length * plan.group;
    AttentionPartial* first = partials + kv_head * rows;
    for (int64_t each = 0; each < rows; ++each) {
        const int64_t token = each / plan.group, seen = a.contexts[row] - length + token + 1;
        const int64_t head = kv_head * plan.group + each % plan.group;
        const int64_t place = (a.starts[row] + token) * a.output_stride + head * a.head_dim;
        kernels.merge_attention(a, first + each, divide_up(seen, kAttentionSegment), a.kv_heads * rows, place);
    }
}

}  // namespace

int32_t qw_attention(qw_context* context, const qw_attention_arguments* arguments) {
    const qw_attention_arguments& a = *arguments;
    if (!all_exist(a)) return 1;
    Pool& pool = context->pool;
    const int64_t tokens = a.rows == 0 ? 0 : a.starts[a.rows], workers = pool.threads();
    const Plan plan(a, workers);
    int64_t total = 0, block_rows = 0;  // of all rows; of the longest block
    for (int64_t row = 0; row < a.rows; ++row) {
        total += plan.partials(row);
        if (!plan.is_short(row)) block_rows = plan.block * plan.group;
    }
    Layout measured(nullptr);
    take_scratch(measured, a, std::max(block_rows, kShortRows));
    Layout shared(nullptr);
    Bounds(shared, a.rows);
    shared.take<AttentionPartial>(total);
    char* memory = static_cast<char*>(context->partials.reserve(shared.used() + workers * measured.used()));
    if (memory == nullptr) return 2;
    Layout layout(memory);
    const Bounds bounds(layout, a.rows);
    bounds.count(plan);
    AttentionPartial* partials = layout.take<AttentionPartial>(total);
    pool.run(divide_up(tokens, kStoredTokens), [&](int64_t part) {
        for (int64_t token = part * kStoredTokens; token < std::min(tokens, (part + 1) * kStoredTokens); ++token) {
            a.type == QW_BF16 ? store_token<bf16>(a, token) : store_token<float>(a, token);
        }
    });
    // Long rows, and in them the blocks that see most, come first: what is left at the end is small.
    const int64_t tasks = bounds.tasks[a.rows];
    std::atomic<int64_t> taken{0};
    pool.run(std::min(workers, tasks), [&](int64_t worker) {
        for (int64_t next; (next = taken.fetch_add(1)) < tasks;) {
            AttentionTask task = find_task(plan, bounds, tasks - 1 - next, partials);
            Layout own(memory + shared.used() + worker * measured.used());
            AttentionPartial* kept = task.scratch.partials;
            task.scratch = take_scratch(own, a, std::max(block_rows, kShortRows));
            if (kept != nullptr) task.scratch.partials = kept;
            task.kernels = context->kernels;
            context->kernels->attend(task);
        }
    });
    pool.run(a.rows * a.kv_heads, [&](int64_t each) {
        const int64_t row = each / a.kv_heads;
        if (plan.is_short(row) && plan.length(row) > 0 && plan.segments(row) > 1) {
            merge_row(*context->kernels, plan, row, each % a.kv_heads, partials + bounds.partials[row]);
        }
    });
    return 0;
}
