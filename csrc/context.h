// What a caller of the C interface holds: the chosen kernels, the threads, and scratch memory. Knows no operation.
#pragma once

#include <vector>

#include "include/qwench.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace qwench {

// One linear layer of a call: its inputs' other form, and its share of the tiles to convert and of the tasks.
struct Layer {
    const qw_linear_arguments* arguments;
    LinearKernel kernel;  // of a matrix that is not quantised
    Inputs form;
    bool coded, pairs;    // the weights are codes; both sides are BF16 pairs
    bool shared;          // inputs are those of the layer before
    int64_t depth;        // of a row, padded
    int64_t input_bytes;  // 0 where inputs are read as they lie
    int64_t correction_bytes;
    int64_t look_bytes;   // 0 but for a vocabulary that is read by its upper bits
    int64_t norm_bytes;
    void* inputs;
    void* corrections;  // of coded inputs
    Look* looks;  // of its panels
    float* norms;
    int64_t units, units_per_task;  // panels of codes, groups of what is not quantised
    int64_t token_blocks, first_task;
    int64_t first_tile;  // of all tiles of inputs to convert
};

}  // namespace qwench

struct qw_context {
    const qwench::Kernels* kernels;
    qwench::Pool pool;
    qwench::Scratch inputs;    // of linear layers, in the form their kernels read
    std::vector<qwench::Layer> layers;  // of the call under way
    qwench::Scratch partials;  // of attention
    qwench::Scratch experts;   // what passes between a layer's steps
    qwench::Scratch choices;   // candidates or weights of one row of logits
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
