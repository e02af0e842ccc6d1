// What rounding.cpp and loading.cpp share.
#pragma once

#include "include/qwench.h"

namespace qwench {

// Whether numbers are rounded to this type: one of our own, as weights/quantise.py makes them.
bool is_roundable(const qw_weight_type& type);

}  // namespace qwench
