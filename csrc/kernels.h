// What an instruction set has to offer: one table of functions per translation unit, chosen once when a context opens.
//
// A kernel computes one task; dividing the work into tasks and the threads are the business of the operation (linear.cpp, attention.cpp, context.cpp, program.cpp).
#pragma once

#include <cstdint>
#include <cstring>

#include "frames.h"
#include "include/qwench.h"
#include "quantised.h"

namespace qwench {

constexpr int64_t kTokenBlock = 192;  // tokens of one task: a multiple of every kernel's block and of the tiles'

// How inputs reach a kernel.
enum class Inputs {
    rows,   // fp32 or BF16 rows padded to the packed depth
    tiles,  // [token tiles, depth tiles, 16, 32] BF16: what the tile unit loads
    codes,  // rounded to 8 bits: CodedInputs
    nested_codes,  // the same, with a scale for each super-block
};

// One linear layer, with its inputs in the form the chosen kernel reads.
struct LinearJob {
    const qw_linear_arguments* arguments;
    const void* inputs;    // [tokens, input_stride] of fp32 or BF16, or tiles
    int64_t input_stride;  // elements
    // Where the weights' one group is cut along its depth: the addresses of its pieces of `piece_depth` elements, and of
    // what the caller reads next. A null pointer: it lies in one, where the weight says.
    const char* const* pieces = nullptr;
    int64_t piece_depth = 0;
};
// How large a number is: a whole number in the same order, and back.
static inline int32_t rank_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits ^ (bits >> 31 & INT32_MAX);
}
static inline float of_rank(int32_t rank) {
    const int32_t bits = rank ^ (rank >> 31 & INT32_MAX);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A panel of a vocabulary as its upper bits show it.
struct Look {
    int32_t most;   // the rank of its largest output; once that is computed from all bits, its rank then
    int32_t panel;
    float spread;   // the standard deviation, but for a factor that all share, of the output that may be farthest off
    float squares;  // once computed: the sum of squares of how far each output was off, in units of its spread
};

struct CodedJob {
    const qw_linear_arguments* arguments;
    CodedInputs inputs;
    Look* looks;         // [panels]; null where all bits are read
    const float* norms;  // [super-blocks], squared, of the rounded inputs
};

// Computes outputs of `group` for tokens [first, last).
using LinearKernel = void (*)(const LinearJob& job, int64_t group, int64_t first, int64_t last);

// Rounds one tile of inputs to 8 bits; works out its corrections for one weight type; computes outputs of panels [begin,
// end) for tokens [first, last); those of a vocabulary's panel, for the one token there is, from all bits.
struct CodedKernels {
    void (*code_inputs)(const qw_linear_arguments& arguments, const CodedInputs& inputs, int64_t tile);
    void (*correct_inputs)(const qw_weight_type& type, const CodedInputs& inputs, int64_t tile);
    void (*linear)(const CodedJob& job, int64_t begin, int64_t end, int64_t first, int64_t last);
    void (*exact)(const CodedJob& job, Look& look);  // null where there are no vocabularies
};

// One block of the inputs of some tokens of a vision tower's layer, rounded to 8 bits: all that a step of its kernel reads of
// them, side by side. Tokens behind the last are zeros.
constexpr int64_t kLayerRows = 12;
struct alignas(64) LayerBlock {
    int8_t numbers[kLayerRows][kBlock];
    int32_t starts[kLayerRows];  // what a whole sum starts from, so that codes may count from 0
    float scales[kLayerRows];
};

// A layer of a vision tower over codes that are bytes with one scale for a block; inputs are [tiles of kLayerRows][blocks].
struct LayerJob {
    const qw_layer_arguments* arguments;
    int64_t blocks;
    LayerBlock* inputs;
};
constexpr int64_t kLayerTiles = 20;  // of one task at most

// Rounds one tile of inputs; computes outputs of panels [begin, end) for tiles [first, last).
struct LayerKernels {
    void (*round)(const LayerJob& job, int64_t tile);
    void (*multiply)(const LayerJob& job, int64_t begin, int64_t end, int64_t first, int64_t last);
};

// Of types whose scales are floats, and of nested ones.
struct CodedPair {
    CodedKernels plain, nested;
};

// Bytes of one number of activations, QW_F32 or QW_BF16.
static inline int64_t value_bytes(int32_t type) { return type == QW_BF16 ? 2 : 4; }

// The row of x that is a token's.
static inline int64_t input_row(const qw_linear_arguments& arguments, int64_t token) {
    return arguments.rows == nullptr ? token : arguments.rows[token];
}

struct Kernels;

constexpr int64_t kAttentionSegment = 256;  // positions that are weighed together
constexpr int64_t kAttentionRows = 64;      // pairs of a query token and a head whose scores are held at once
constexpr int64_t kAttentionWidth = QW_ATTENTION_WIDTH;

// Bytes of one head's tile of the cache.
static inline int64_t cache_tile_bytes(const qw_attention_arguments& a) {
    const int64_t elements = tile_elements(a.head_dim);
    return a.coded ? elements + kTilePositions * 4 : elements * value_bytes(a.type);
}

// What one query head found in some segments: sum of e^(score - maximum) * value, and the sum of the weights.
struct AttentionPartial {
    alignas(64) float output[kAttentionWidth];
    float maximum, total;
};

// Memory of one task.
struct AttentionScratch {
    char* keys;     // the tiles of a segment whose cache is coded
    char* values;   // the same, or the one tile that is not full
    void* queries;  // all of the task's, as inputs of a linear kernel
    void* weights;  // [kAttentionRows, kAttentionSegment], as inputs of a linear kernel
    float* scores;    // [kAttentionRows, kAttentionSegment]
    float* products;  // [kAttentionRows, kAttentionWidth]
    AttentionPartial* partials;  // [tokens * query heads of a key head], for each segment or for all
};

// Tokens [first_token, last_token) of one row (counted in the row) through one key head, over some segments.
struct AttentionTask {
    const qw_attention_arguments* arguments;
    const Kernels* kernels;
    AttentionScratch scratch;
    int64_t row, kv_head;
    int64_t first_token, last_token;
    int64_t first_segment, last_segment;
    int64_t partial_stride;  // from a segment's partials to the next one's; 0: they are folded as they come
    bool finishes;           // writes outputs; else the partials are the result
};

constexpr int64_t kTrial = 1024;  // logits that are all candidates, to learn what is large

// A logit and where it stands.
struct Candidate {
    float logit;
    int64_t place;
};

// How logits become weights: e^((logit - maximum) * sharpness), none where that is below `floor`.
struct Weighing {
    double maximum, sharpness, floor;
};

struct Kernels {
    const char* name;
    LinearKernel linear_f32;        // fp32 weights, fp32 inputs
    LinearKernel linear_bf16;       // BF16 weights, fp32 inputs
    LinearKernel linear_bf16_pairs;  // BF16 weights, BF16 inputs; null where there is no such instruction
    Inputs pair_inputs;
    CodedPair coded;
    void (*norm)(const qw_norm_arguments& arguments, int64_t row);
    void (*delta_net)(const qw_delta_arguments& arguments, int64_t row, int64_t key_head);
    void (*attend)(const AttentionTask& task);
    // Folds one query head's partials, `stride` apart, into the first; writes the output at element `place`.
    void (*merge_attention)(const qw_attention_arguments& arguments, AttentionPartial* partials, int64_t segments,
                            int64_t stride, int64_t place);
    FrameKernels frames_f32, frames_bf16;
    LayerKernels layer_bytes;  // nulls where other kernels are faster
    void (*expert_probabilities)(const qw_experts_arguments& arguments, int64_t token, float* probabilities);
    // hidden [width] = silu(gate) * up, of both [2 * width] side by side.
    void (*gate_expert)(int32_t type, const void* both, int64_t width, void* hidden);
    // y of the token = the sum over its experts' rows of outputs, each times its weight.
    void (*sum_experts)(const qw_experts_arguments& arguments, const void* outputs, const int64_t* places,
                        const float* weights, int64_t token);
    int64_t (*find_largest)(const float* logits, int64_t count);
    int64_t (*gather_top)(const float* logits, int64_t first, int64_t last, int64_t count, Candidate* found,
                          void (*keep)(Candidate* candidates, int64_t size, int64_t count));
    double (*weigh_logits)(const float* logits, int64_t count, const Weighing& weighing, double* weights);
    // Numbers [first, first + count) of a row; a whole row; a head of a token.
    void (*pointwise)(const qw_pointwise_arguments& arguments, int64_t row, int64_t first, int64_t count);
    void (*widen)(const qw_widen_arguments& arguments, int64_t row);
    void (*rotate)(const qw_rotation_arguments& arguments, int64_t token, int64_t head);
    // Rows [first, first + count), at most 16 of them, to codes.
    void (*round_rows)(const qw_round_arguments& arguments, int64_t first, int64_t count);
};

// The tables, one per translation unit; null where the compiler cannot make it.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const CodedPair* avx512_vnni_coded();
const CodedPair* amx_int8_coded();
LinearKernel avx512_bf16_linear();
LinearKernel amx_bf16_linear();
FrameKernels avx512_bf16_frames();
const LayerKernels* avx512_vnni_layer();

// Whether streams are asked for ahead of their use. AMD's processors find them by themselves, and hold up other reads for
// what they are asked for: Zen 4 reads quantised weights at half the speed with hints (docs/log.md).
extern const bool kAsksAhead;

// The table called `name`; null where it is unknown or this processor lacks it.
const Kernels* find_kernels(const char* name);

}  // namespace qwench
