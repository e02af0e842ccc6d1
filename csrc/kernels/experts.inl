// What a layer of experts does beside its linear layers, one token at a time. Included once per instruction set, after
// simd.h. Everything is rounded where the reference rounds it.

namespace qwench {
namespace {

// probabilities <- softmax of a token's logits.
template <class T>
void softmax(const T* logits, int64_t count, float* probabilities) {
    V seen = all(-__builtin_huge_valf());
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t left = count - i;
        const V each = load_some(logits + i, left);
        seen = most(left < kLanes ? first_lanes(each, seen, left) : each, seen);
    }
    const V maximum = all(largest(seen));
    V sums = zero();
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t left = count - i;
        V each = exponential(sub(load_some(logits + i, left), maximum));
        if (left < kLanes) each = first_lanes(each, zero(), left);
        store_some(probabilities + i, each, left);
        sums = add(sums, each);
    }
    const V total = all(sum(sums));
    for (int64_t i = 0; i < count; i += kLanes) {
        store_some(probabilities + i, div(load_some(probabilities + i, count - i), total), count - i);
    }
}

void expert_probabilities(const qw_experts_arguments& a, int64_t token, float* probabilities) {
    const int64_t place = token * a.logits_stride;
    if (a.type == QW_BF16) {
        softmax(static_cast<const bf16*>(a.logits) + place, a.experts, probabilities);
    } else {
        softmax(static_cast<const float*>(a.logits) + place, a.experts, probabilities);
    }
}

// hidden [width] = silu(gate) * up, of both [2 * width] side by side.
template <class T>
void gate_hidden(const T* both, int64_t width, T* hidden) {
    for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t left = width - i;
        const V gate = rounded<T>(silu(load_some(both + i, left)));
        store_some(hidden + i, mul(gate, load_some(both + width + i, left)), left);
    }
}

void gate_expert(int32_t type, const void* both, int64_t width, void* hidden) {
    if (type == QW_BF16) {
        gate_hidden(static_cast<const bf16*>(both), width, static_cast<bf16*>(hidden));
    } else {
        gate_hidden(static_cast<const float*>(both), width, static_cast<float*>(hidden));
    }
}

// y [hidden] = the sum over the token's experts, in their order, of weight * output.
template <class T>
void sum_outputs(const T* outputs, const int64_t* places, const float* weights, int64_t count, int64_t hidden, T* y) {
    for (int64_t i = 0; i < hidden; i += kLanes) {
        const int64_t left = hidden - i;
        V total = zero();
        for (int64_t each = 0; each < count; ++each) {
            total = add(total, mul(load_some(outputs + places[each] * hidden + i, left), all(weights[each])));
        }
        store_some(y + i, total, left);
    }
}

void sum_experts(const qw_experts_arguments& a, const void* outputs, const int64_t* places, const float* weights,
                 int64_t token) {
    const int64_t at = token * a.y_stride;
    if (a.type == QW_BF16) {
        bf16* y = static_cast<bf16*>(a.y) + at;
        sum_outputs(static_cast<const bf16*>(outputs), places, weights, a.chosen, a.hidden, y);
    } else {
        float* y = static_cast<float*>(a.y) + at;
        sum_outputs(static_cast<const float*>(outputs), places, weights, a.chosen, a.hidden, y);
    }
}

}  // namespace
}  // namespace qwench
