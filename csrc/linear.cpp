// Linear layers: brings the inputs into the form the chosen kernel reads, and divides the outputs into tasks.
#include <cstring>
#include <type_traits>

#include "bf16.h"
#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

constexpr int64_t kTokenBlock = 192;  // tokens of one task: a multiple of every kernel's block and of the tiles'
constexpr int64_t kTile = 16;         // tokens of one tile

// A row of x in type To, zeros from `in` to `depth`.
template <class From, class To>
void copy_row(const From* x, int64_t in, int64_t depth, To* target) {
    if constexpr (std::is_same_v<From, To>) {
        std::memcpy(target, x, static_cast<size_t>(in) * sizeof(To));
    } else {
        for (int64_t i = 0; i < in; ++i) target[i] = widen(x[i]);
    }
    std::memset(target + in, 0, static_cast<size_t>(depth - in) * sizeof(To));
}

const bf16* bf16_row(const qw_linear_arguments& a, int64_t token) {
    return static_cast<const bf16*>(a.x) + token * a.x_stride;
}

// fp32 rows [tokens, depth]. False where there is not enough memory.
bool widen_inputs(qw_context& context, const qw_linear_arguments& a, int64_t depth, LinearJob& job) {
    job.inputs = a.x;
    job.input_stride = a.x_stride;
    if (a.type == QW_F32 && depth == a.in) return true;
    float* rows = static_cast<float*>(context.inputs.reserve(a.tokens * depth * static_cast<int64_t>(sizeof(float))));
    if (rows == nullptr) return false;
    context.pool.run(divide_up(a.tokens, kTile), [&](int64_t tile) {
        for (int64_t token = tile * kTile; token < a.tokens && token < (tile + 1) * kTile; ++token) {
            if (a.type == QW_BF16) {
                copy_row(bf16_row(a, token), a.in, depth, rows + token * depth);
            } else {
                copy_row(static_cast<const float*>(a.x) + token * a.x_stride, a.in, depth, rows + token * depth);
            }
        }
    });
    job.inputs = rows;
    job.input_stride = depth;
    return true;
}

// BF16 rows [tokens, depth]. False where there is not enough memory.
bool pad_inputs(qw_context& context, const qw_linear_arguments& a, int64_t depth, LinearJob& job) {
    job.inputs = a.x;
    job.input_stride = a.x_stride;
    if (depth == a.in) return true;
    bf16* rows = static_cast<bf16*>(context.inputs.reserve(a.tokens * depth * static_cast<int64_t>(sizeof(bf16))));
    if (rows == nullptr) return false;
    for (int64_t token = 0; token < a.tokens; ++token) copy_row(bf16_row(a, token), a.in, depth, rows + token * depth);
    job.inputs = rows;
    job.input_stride = depth;
    return true;
}

// BF16 tiles [tokens / 16, depth / 32, 16, 32], zeros where there is no token. False where there is not enough memory.
bool tile_inputs(qw_context& context, const qw_linear_arguments& a, int64_t depth, LinearJob& job) {
    const int64_t tiles = divide_up(a.tokens, kTile), tile_size = kTile * kDepthTile;
    const int64_t row_tile_size = depth / kDepthTile * tile_size;
    bf16* memory = static_cast<bf16*>(context.inputs.reserve(tiles * row_tile_size * static_cast<int64_t>(sizeof(bf16))));
    if (memory == nullptr) return false;
    context.pool.run(tiles, [&](int64_t tile) {
        for (int64_t row = 0; row < kTile; ++row) {
            const int64_t token = tile * kTile + row;
            for (int64_t at = 0; at < depth; at += kDepthTile) {
                bf16* target = memory + tile * row_tile_size + at / kDepthTile * tile_size + row * kDepthTile;
                const int64_t left = token < a.tokens ? a.in - at : 0;
                const int64_t count = left < kDepthTile ? left : kDepthTile;
                if (count > 0) std::memcpy(target, bf16_row(a, token) + at, static_cast<size_t>(count) * sizeof(bf16));
                if (count < kDepthTile) {
                    const int64_t from = count > 0 ? count : 0;
                    std::memset(target + from, 0, static_cast<size_t>(kDepthTile - from) * sizeof(bf16));
                }
            }
        }
    });
    job.inputs = memory;
    job.input_stride = 0;
    return true;
}

}  // namespace

int32_t qw_linear(qw_context* context, const qw_linear_arguments* arguments) {
    const qw_linear_arguments& a = *arguments;
    const Kernels& kernels = *context->kernels;
    const bool is_bf16 = a.weight_type == QW_BF16;
    const bool pairs = is_bf16 && a.type == QW_BF16 && kernels.linear_bf16_pairs != nullptr;
    const int64_t depth = padded_depth(is_bf16, a.in);
    LinearJob job = {arguments, nullptr, 0};
    const bool ready = !pairs                                   ? widen_inputs(*context, a, depth, job)
                       : kernels.pair_inputs == Inputs::tiles ? tile_inputs(*context, a, depth, job)
                                                                : pad_inputs(*context, a, depth, job);
    if (!ready) return 1;
    const LinearKernel kernel = pairs ? kernels.linear_bf16_pairs : is_bf16 ? kernels.linear_bf16 : kernels.linear_f32;
    // Blocks of tokens are the inner index: a thread that goes on finds the group's weights in its cache.
    const int64_t blocks = divide_up(a.tokens, kTokenBlock);
    context->pool.run(num_groups(a.out) * blocks, [&](int64_t task) {
        const int64_t first = task % blocks * kTokenBlock;
        const int64_t last = first + kTokenBlock < a.tokens ? first + kTokenBlock : a.tokens;
        kernel(job, task / blocks, first, last);
    });
    return 0;
}
