// What an instruction set has to offer: one table of functions per translation unit, chosen once when a context opens.
//
// A kernel computes one task; dividing the work into tasks and the threads are the business of the operation (linear.cpp, attention.cpp, context.cpp).
#pragma once

#include <cstdint>

#include "include/qwench.h"
#include "quantised.h"

namespace qwench {

constexpr int64_t kTokenBlock = 192;  // tokens of one task: a multiple of every kernel's block and of the tiles'

// How inputs reach a kernel.
enum class Inputs {
    rows,   // fp32 or BF16 rows padded to the packed depth
    tiles,  // [token tiles, depth tiles, 16, 32] BF16: what the tile unit loads
    codes,  // rounded to 8 bits: CodedInputs
};

// One linear layer, with its inputs in the form the chosen kernel reads.
struct LinearJob {
    const qw_linear_arguments* arguments;
    const void* inputs;    // [tokens, input_stride] of fp32 or BF16, or tiles
    int64_t input_stride;  // elements
};
struct CodedJob {
    const qw_linear_arguments* arguments;
    CodedInputs inputs;
};

// Computes outputs of `group` for tokens [first, last).
using LinearKernel = void (*)(const LinearJob& job, int64_t group, int64_t first, int64_t last);

// Rounds one tile of inputs to 8 bits; computes outputs of panels [begin, end) for tokens [first, last).
struct CodedKernels {
    void (*code_inputs)(const qw_linear_arguments& arguments, const CodedInputs& inputs, int64_t tile);
    void (*linear)(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last);
};

// The row of x that is a token's.
static inline int64_t input_row(const qw_linear_arguments& arguments, int64_t token) {
    return arguments.rows == nullptr ? token : arguments.rows[token];
}

constexpr int64_t kAttentionSegment = 512;  // positions of one task
constexpr int64_t kAttentionWidth = QW_ATTENTION_WIDTH;

// Positions [first, first + count) of one row and key head.
struct AttentionSegment {
    const qw_attention_arguments* arguments;
    int64_t row, kv_head, first, count;
};

// What one query head found in one segment: sum of e^(score - maximum) * value, and the sum of the weights.
struct AttentionPartial {
    float maximum, total;
    float output[kAttentionWidth];
};

struct Kernels {
    const char* name;
    LinearKernel linear_f32;        // fp32 weights, fp32 inputs
    LinearKernel linear_bf16;       // BF16 weights, fp32 inputs
    LinearKernel linear_bf16_pairs;  // BF16 weights, BF16 inputs; null where there is no such instruction
    Inputs pair_inputs;
    CodedKernels coded;
    void (*rms_norm)(const qw_norm_arguments& arguments, int64_t row);
    void (*delta_net)(const qw_delta_arguments& arguments, int64_t row, int64_t key_head);
    // One partial for each query head of the key head.
    void (*attend)(const AttentionSegment& segment, AttentionPartial* partials);
};

// The tables, one per translation unit; null where the compiler cannot make it.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const CodedKernels* avx512_vnni_coded();
const CodedKernels* amx_int8_coded();
LinearKernel avx512_bf16_linear();
LinearKernel amx_bf16_linear();

// The table called `name`; null where it is unknown or this processor lacks it.
const Kernels* find_kernels(const char* name);

}  // namespace qwench
