// Layers of a vision tower: one pass over codes that are bytes; for other weights the operations it is made of.
#include <algorithm>

#include "context.h"

using namespace qwench;

namespace {

constexpr int64_t kTaskPanels = 4;  // of one task: threads write lines of their own
constexpr int64_t kStepRows = 16;   // of one task of what follows a product

bool are_bytes(const qw_weight_type& type) {
    const bool plain = type.element == QW_CODES && !type.nested && !type.has_min && !type.has_table;
    return plain && type.bits == 8 && type.block == kBlock;
}

qw_linear_arguments product_of(const qw_layer_arguments& a, void* y, int64_t y_stride) {
    return {a.weight, a.tokens, a.type, a.x, nullptr, a.x_stride, a.bias, 0, y, y_stride, nullptr};
}

int32_t multiply_bytes(qw_context& context, const qw_layer_arguments& a) {
    const int64_t tiles = divide_up(a.tokens, kLayerRows), blocks = num_blocks(*a.weight->type, a.weight->in);
    void* memory = context.inputs.reserve(tiles * blocks * static_cast<int64_t>(sizeof(LayerBlock)));
    if (memory == nullptr) return 1;
    const LayerJob job = {&a, blocks, static_cast<LayerBlock*>(memory)};
    const LayerKernels& kernels = context.kernels->layer_bytes;
    context.pool.run(tiles, [&](int64_t tile) { kernels.round(job, tile); });
    const int64_t panels = divide_up(a.weight->out, kPanel), pieces = divide_up(tiles, kLayerTiles);
    context.pool.run(divide_up(panels, kTaskPanels) * pieces, [&](int64_t task) {
        // Pieces of tokens, all of about one size, are the inner index: a thread that goes on finds the weights in its cache.
        const int64_t begin = task / pieces * kTaskPanels, piece = task % pieces;
        const int64_t first = tiles * piece / pieces, last = tiles * (piece + 1) / pieces;
        kernels.multiply(job, begin, std::min(panels, begin + kTaskPanels), first, last);
    });
    return 0;
}

// Rows combined with themselves or with others, into y.
void combine(qw_context& context, const qw_pointwise_arguments& a) {
    context.pool.run(divide_up(a.rows, kStepRows), [&](int64_t task) {
        const int64_t last = std::min(a.rows, (task + 1) * kStepRows);
        for (int64_t row = task * kStepRows; row < last; ++row) context.kernels->pointwise(a, row, 0, a.width);
    });
}

int32_t go_through(qw_context& context, const qw_layer_arguments& a) {
    const int64_t out = a.weight->out;
    void* between = a.residual == nullptr ? a.y : context.partials.reserve(a.tokens * out * value_bytes(a.type));
    const int64_t stride = a.residual == nullptr ? a.y_stride : out;
    if (between == nullptr) return 1;
    const qw_linear_arguments product = product_of(a, between, stride);
    if (const int32_t status = qw_linear(&context, &product); status != 0) return status;
    if (a.gelu) {
        combine(context, {a.tokens, out, out, QW_GELU, a.type, between, stride, between, stride, between, stride});
    }
    if (a.residual != nullptr) {
        combine(context, {a.tokens, out, out, QW_ADD, a.type, a.residual, a.residual_stride, between, stride, a.y, a.y_stride});
    }
    return 0;
}

// The same over inputs that were normed into memory.
int32_t norm_and_go_through(qw_context& context, qw_layer_arguments a) {
    const int64_t in = a.weight->in;
    void* normed = context.experts.reserve(a.tokens * in * value_bytes(a.type));
    if (normed == nullptr) return 1;
    const qw_norm_arguments norm = {a.tokens, in, a.type, a.epsilon, 0, a.x, a.x_stride, a.norm, normed, in, a.norm_bias};
    qw_rms_norm(&context, &norm);
    a.x = normed;
    a.x_stride = in;
    return go_through(context, a);
}

}  // namespace

int32_t qw_layer(qw_context* context, const qw_layer_arguments* arguments) {
    const qw_layer_arguments& a = *arguments;
    if (a.tokens == 0 || a.weight->out == 0) return 0;
    const bool at_once = context->kernels->layer_bytes.multiply != nullptr && are_bytes(*a.weight->type);
    if (at_once) return multiply_bytes(*context, a);
    return a.norm == nullptr ? go_through(*context, a) : norm_and_go_through(*context, a);
}
