// What packing.cpp, packing_codes.cpp and loading.cpp share: rows into the packed layout, and single rows of quantised
// weights back out of it. It knows no arithmetic but a weight's own.
#pragma once

#include "bf16.h"
#include "include/qwench.h"
#include "stored.h"

namespace qwench {

// Whether the type is one that qwench.h describes.
bool is_known(const qw_weight_type& type);

// What stands before the panels of a quantised matrix.
void put_lead(float factor, uint8_t* packed);

// A quantised matrix [out, in] that is being packed.
struct Target {
    const qw_weight_type& type;
    int64_t out, in;
    uint8_t* packed;
};

// Rows [first, first + count) as one panel, whose other outputs are zero.
void pack_panel(const Target& target, int64_t panel, const StoredRows& rows, int64_t first, int64_t count);

// Group `group` of an unquantised [out, in] from its rows, which lie `stride` bytes apart.
void pack_group(bool is_bf16, int64_t out, int64_t in, const char* rows, int64_t stride, int64_t group, char* packed);

// One row of a quantised matrix.
void unpack_codes(const qw_weight& weight, int64_t row, float* target);
void unpack_codes(const qw_weight& weight, int64_t row, bf16* target);

}  // namespace qwench
