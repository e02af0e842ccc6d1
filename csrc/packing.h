// What packing.cpp and packing_codes.cpp share: single rows of quantised weights. It knows no arithmetic but a weight's own.
#pragma once

#include "bf16.h"
#include "include/qwench.h"

namespace qwench {

// Whether the type is one that qwench.h describes.
bool is_known(const qw_weight_type& type);

// One row of a quantised matrix.
void unpack_codes(const qw_weight& weight, int64_t row, float* target);
void unpack_codes(const qw_weight& weight, int64_t row, bf16* target);

}  // namespace qwench
