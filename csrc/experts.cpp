// A layer of experts: chooses them, groups tokens by expert, and hands all experts' linear layers out as one job each.
#include <algorithm>

#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

constexpr int64_t kTogether = 8;  // tokens, or pairs, of one task: one token alone needs no other thread

// A pair is a token and one of its experts. Pairs of a token lie side by side, in ascending order of experts; groups
// hold the pairs of an expert, in the order of tokens.
struct Pairs {
    int64_t* experts;  // [tokens, chosen]
    float* weights;    // [tokens, chosen]
    int64_t* places;   // [tokens, chosen] where the pair lies in its group's rows
    int64_t* starts;   // [experts + 1] where each group begins
    int64_t* tokens;   // [pairs] of the groups, one after the other
};

struct Rows {
    void* gate_up;  // [pairs, 2 * width]
    void* gated;    // [pairs, width]
    void* outputs;  // [pairs, hidden]
};

struct Memory {
    Pairs pairs;
    Rows rows;
    float* probabilities;         // [tokens, experts]
    qw_linear_arguments* layers;  // [groups that are not empty]

    Memory(Layout& layout, const qw_experts_arguments& a) {
        const int64_t count = a.tokens * a.chosen, size = value_bytes(a.type);
        pairs.experts = layout.take<int64_t>(count);
        pairs.weights = layout.take<float>(count);
        pairs.places = layout.take<int64_t>(count);
        pairs.starts = layout.take<int64_t>(a.experts + 1);
        pairs.tokens = layout.take<int64_t>(count);
        rows.gate_up = layout.take<char>(count * 2 * a.width * size);
        rows.gated = layout.take<char>(count * a.width * size);
        rows.outputs = layout.take<char>(count * a.hidden * size);
        probabilities = layout.take<float>(a.tokens * a.experts);
        layers = layout.take<qw_linear_arguments>(std::min(count, a.experts));
    }
};

// The most probable experts, among equals the lower number; then in ascending order, with their weights.
void choose(const qw_experts_arguments& a, const float* probabilities, int64_t* experts, float* weights) {
    int64_t count = 0;
    for (int64_t expert = 0; expert < a.experts; ++expert) {
        const float probability = probabilities[expert];
        if (count == a.chosen && !(probability > probabilities[experts[count - 1]])) continue;
        int64_t at = count < a.chosen ? count++ : count - 1;
        for (; at > 0 && probability > probabilities[experts[at - 1]]; --at) experts[at] = experts[at - 1];
        experts[at] = expert;
    }
    float total = 0.0f;
    for (int64_t i = 0; i < count; ++i) total += probabilities[experts[i]];
    std::sort(experts, experts + count);
    for (int64_t i = 0; i < count; ++i) {
        weights[i] = a.normalise ? probabilities[experts[i]] / total : probabilities[experts[i]];
    }
}

void group_pairs(const qw_experts_arguments& a, const Pairs& pairs) {
    const int64_t count = a.tokens * a.chosen;
    std::fill(pairs.starts, pairs.starts + a.experts + 1, 0);
    for (int64_t pair = 0; pair < count; ++pair) ++pairs.starts[pairs.experts[pair] + 1];
    for (int64_t expert = 0; expert < a.experts; ++expert) pairs.starts[expert + 1] += pairs.starts[expert];
    for (int64_t pair = 0; pair < count; ++pair) {
        pairs.places[pair] = pairs.starts[pairs.experts[pair]]++;
        pairs.tokens[pairs.places[pair]] = pair / a.chosen;
    }
    std::copy_backward(pairs.starts, pairs.starts + a.experts, pairs.starts + a.experts + 1);  // each moved to its end
    pairs.starts[0] = 0;
}

// One of the two linear layers of every chosen expert: rows `x`, of which `tokens` names those of each pair, to `y`.
int32_t multiply(qw_context& context, const qw_experts_arguments& a, const Memory& memory, const qw_weight* weights,
                 const void* x, int64_t x_stride, const int64_t* tokens, void* y) {
    const int64_t size = value_bytes(a.type);
    int64_t count = 0;
    for (int64_t expert = 0; expert < a.experts; ++expert) {
        const int64_t first = memory.pairs.starts[expert], rows = memory.pairs.starts[expert + 1] - first;
        if (rows == 0) continue;
        qw_linear_arguments layer = {};
        layer.weight = weights + expert;
        layer.tokens = rows;
        layer.type = a.type;
        layer.x = tokens == nullptr ? static_cast<const char*>(x) + first * x_stride * size : x;
        layer.rows = tokens == nullptr ? nullptr : tokens + first;
        layer.x_stride = x_stride;
        layer.y = static_cast<char*>(y) + first * layer.weight->out * size;
        layer.y_stride = layer.weight->out;
        if (a.tokens == 1 && tokens != nullptr) layer.rows = nullptr;  // the same for all: converted once
        memory.layers[count++] = layer;
    }
    return qw_linear_many(&context, memory.layers, count);
}

template <class Work>
void run(Pool& pool, int64_t count, const Work& work) {
    pool.run(divide_up(count, kTogether), [&](int64_t task) {
        for (int64_t i = task * kTogether; i < std::min(count, (task + 1) * kTogether); ++i) work(i);
    });
}

}  // namespace

int32_t qw_experts(qw_context* context, const qw_experts_arguments* arguments) {
    const qw_experts_arguments& a = *arguments;
    const Kernels& kernels = *context->kernels;
    Layout measured(nullptr);
    Memory(measured, a);
    char* reserved = static_cast<char*>(context->experts.reserve(measured.used()));
    if (reserved == nullptr && measured.used() > 0) return 1;
    Layout layout(reserved);
    const Memory memory(layout, a);
    const Pairs& pairs = memory.pairs;
    run(context->pool, a.tokens, [&](int64_t token) {
        float* probabilities = memory.probabilities + token * a.experts;
        kernels.expert_probabilities(a, token, probabilities);
        choose(a, probabilities, pairs.experts + token * a.chosen, pairs.weights + token * a.chosen);
    });
    group_pairs(a, pairs);
    if (multiply(*context, a, memory, a.gate_up, a.x, a.x_stride, pairs.tokens, memory.rows.gate_up)) return 1;
    const int64_t size = value_bytes(a.type);
    run(context->pool, a.tokens * a.chosen, [&](int64_t pair) {
        const char* both = static_cast<const char*>(memory.rows.gate_up) + pair * 2 * a.width * size;
        kernels.gate_expert(a.type, both, a.width, static_cast<char*>(memory.rows.gated) + pair * a.width * size);
    });
    if (multiply(*context, a, memory, a.down, memory.rows.gated, a.width, nullptr, memory.rows.outputs)) return 1;
    run(context->pool, a.tokens, [&](int64_t token) {
        const int64_t pair = token * a.chosen;
        kernels.sum_experts(a, memory.rows.outputs, pairs.places + pair, pairs.weights + pair, token);
    });
    return 0;
}
