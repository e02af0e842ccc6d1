// Weights into their packed layout, and single rows back out of it.
#include <algorithm>
#include <cstring>

#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

struct Packing {
    bool is_bf16;
    int64_t out, in;

    int64_t size() const { return is_bf16 ? 2 : 4; }
    int64_t row_bytes() const { return in * size(); }
    int64_t steps() const { return num_steps(is_bf16, in); }
    int64_t width(int64_t group) const { return panels_of(out, group) * kPanel; }
};

// A step of an output is one fp32 or two BF16, so packing is a transposition of four-byte words whatever the type. It
// goes by tiles of 16 steps: one cache line of each row.
void pack_group(const Packing& packing, const char* source, int64_t stride, int64_t group, char* packed) {
    constexpr int64_t kTileSteps = 16;
    const int64_t width = packing.width(group), steps = packing.steps(), first = group * kGroup;
    const int64_t rows = std::min(width, packing.out - first);
    uint32_t* target = reinterpret_cast<uint32_t*>(packed + group_offset(packing.is_bf16, packing.in, group));
    for (int64_t step = 0; step < steps; step += kTileSteps) {
        const int64_t count = std::min(kTileSteps, steps - step), at = step * kStepBytes;
        for (int64_t output = 0; output < width; ++output) {
            uint32_t words[kTileSteps] = {};  // zeros behind the last output and behind the end of the depth
            const int64_t left = output < rows ? packing.row_bytes() - at : 0;
            const char* from = source + (first + output) * stride * packing.size() + at;
            if (left > 0) std::memcpy(words, from, static_cast<size_t>(std::min(left, count * kStepBytes)));
            for (int64_t i = 0; i < count; ++i) target[(step + i) * width + output] = words[i];
        }
    }
}

void unpack_row(const Packing& packing, const char* packed, int64_t row, char* target) {
    const int64_t group = row / kGroup, row_bytes = packing.row_bytes();
    const char* from = packed + group_offset(packing.is_bf16, packing.in, group) + row % kGroup * kStepBytes;
    for (int64_t at = 0; at < row_bytes; at += kStepBytes) {
        const int64_t left = row_bytes - at;
        std::memcpy(target + at, from, static_cast<size_t>(left < kStepBytes ? left : kStepBytes));
        from += packing.width(group) * kStepBytes;
    }
}

}  // namespace

int64_t qw_packed_bytes(int32_t type, int64_t out, int64_t in) { return packed_bytes(type == QW_BF16, out, in); }

void qw_pack(qw_context* context, int32_t type, int64_t out, int64_t in, const void* source, int64_t source_stride,
             void* packed) {
    const Packing packing = {type == QW_BF16, out, in};
    context->pool.run(num_groups(out), [&](int64_t group) {
        pack_group(packing, static_cast<const char*>(source), source_stride, group, static_cast<char*>(packed));
    });
}

int32_t qw_unpack_rows(qw_context* context, int32_t type, int64_t out, int64_t in, const void* packed,
                       const int64_t* rows, int64_t count, void* target, int64_t target_stride) {
    if (!all_within(rows, count, out)) return 1;
    const Packing packing = {type == QW_BF16, out, in};
    context->pool.run(count, [&](int64_t i) {
        char* to = static_cast<char*>(target) + i * target_stride * packing.size();
        unpack_row(packing, static_cast<const char*>(packed), rows[i], to);
    });
    return 0;
}
