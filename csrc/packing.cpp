// Weights into their packed layout, and single rows back out of it.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "bf16.h"
#include "context.h"
#include "packing.h"

namespace qwench {

// A step of an output is one fp32 or two BF16, so packing is a transposition of four-byte words whatever the type. It
// goes by tiles of 16 steps: one cache line of each row.
void pack_group(bool is_bf16, int64_t out, int64_t in, const char* rows, int64_t stride, int64_t group, char* packed) {
    constexpr int64_t kTileSteps = 16;
    const int64_t width = panels_of(out, group) * kPanel, steps = num_steps(is_bf16, in);
    const int64_t count = std::min(width, out - group * kGroup), row_bytes = in * (is_bf16 ? 2 : 4);
    uint32_t* target = reinterpret_cast<uint32_t*>(packed + group_offset(is_bf16, in, group));
    for (int64_t step = 0; step < steps; step += kTileSteps) {
        const int64_t tile = std::min(kTileSteps, steps - step), at = step * kStepBytes;
        for (int64_t output = 0; output < width; ++output) {
            uint32_t words[kTileSteps] = {};  // zeros behind the last output and behind the end of the depth
            const int64_t left = output < count ? row_bytes - at : 0;
            if (left > 0) std::memcpy(words, rows + output * stride + at, static_cast<size_t>(std::min(left, tile * kStepBytes)));
            for (int64_t i = 0; i < tile; ++i) target[(step + i) * width + output] = words[i];
        }
    }
}

}  // namespace qwench

using namespace qwench;

namespace {

template <class Element, class Output>
void unpack_row(const qw_weight& weight, int64_t row, Output* target) {
    constexpr bool kIsBf16 = std::is_same_v<Element, bf16>;
    constexpr int64_t kEach = kStepBytes / static_cast<int64_t>(sizeof(Element));  // elements of a step
    const int64_t group = row / kGroup, stride = panels_of(weight.out, group) * kPanel * kEach;
    const char* start = static_cast<const char*>(weight.packed) + group_offset(kIsBf16, weight.in, group);
    const Element* from = reinterpret_cast<const Element*>(start) + row % kGroup * kEach;
    for (int64_t i = 0; i < weight.in; ++i) put(target + i, from[i / kEach * stride + i % kEach]);
}

template <class Output>
void unpack_row_as(const qw_weight& weight, int64_t row, Output* target) {
    switch (weight.type->element) {
        case QW_F32: return unpack_row<float>(weight, row, target);
        case QW_BF16: return unpack_row<bf16>(weight, row, target);
        default: return unpack_codes(weight, row, target);
    }
}

}  // namespace

int64_t qw_packed_bytes(const qw_weight_type* type, int64_t out, int64_t in) {
    if (!is_known(*type)) return -1;
    if (type->element == QW_CODES) return quantised_bytes(*type, out, in);
    return packed_bytes(type->element == QW_BF16, out, in);
}

void qw_pack(qw_context* context, int32_t element, int64_t out, int64_t in, const void* source, int64_t source_stride,
             void* packed) {
    const bool is_bf16 = element == QW_BF16;
    const int64_t stride = source_stride * (is_bf16 ? 2 : 4);
    context->pool.run(num_groups(out), [&](int64_t group) {
        const char* rows = static_cast<const char*>(source) + group * kGroup * stride;
        pack_group(is_bf16, out, in, rows, stride, group, static_cast<char*>(packed));
    });
}

int32_t qw_unpack_rows(qw_context* context, const qw_unpack_arguments* arguments) {
    const qw_unpack_arguments& a = *arguments;
    if (!all_within(a.rows, a.count, a.weight->out)) return 1;
    context->pool.run(a.count, [&](int64_t i) {
        if (a.type == QW_BF16) {
            unpack_row_as(*a.weight, a.rows[i], static_cast<bf16*>(a.target) + i * a.target_stride);
        } else {
            unpack_row_as(*a.weight, a.rows[i], static_cast<float*>(a.target) + i * a.target_stride);
        }
    });
    return 0;
}
