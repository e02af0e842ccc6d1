// What a caller of the C interface holds: the chosen kernels, the threads, and scratch memory. Knows no operation.
#pragma once

#include "include/qwench.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

struct qw_context {
    const qwench::Kernels* kernels;
    qwench::Pool pool;
    qwench::Scratch inputs;    // of linear, in the form its kernel reads
    qwench::Scratch partials;  // of attention
    qwench::Scratch values;    // between the instructions of a program

    qw_context(const qwench::Kernels* chosen, int threads) : kernels(chosen), pool(threads) {}
};

namespace qwench {

inline bool all_within(const int64_t* indices, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; ++i) {
        if (indices[i] < 0 || indices[i] >= limit) return false;
    }
    return true;
}

}  // namespace qwench
