// Norms of one row: root-mean-square, and layer norms. Included once per instruction set, after simd.h.

#include "layer_norm.inl"

namespace qwench {
namespace {

template <class T>
void rms_norm_row(const qw_norm_arguments& a, int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    const T* weight = static_cast<const T*>(a.weight);
    T* y = static_cast<T*>(a.y) + row * a.y_stride;
    V squares = zero();
    for (int64_t i = 0; i < a.width; i += kLanes) {
        const V value = load_some(x + i, a.width - i);
        squares = fma(value, value, squares);
    }
    const V factor = all(1.0f / std::sqrt(sum(squares) / static_cast<float>(a.width) + a.epsilon));
    for (int64_t i = 0; i < a.width; i += kLanes) {
        const V scale = add(load_some(weight + i, a.width - i), all(a.offset));
        store_some(y + i, mul(mul(load_some(x + i, a.width - i), factor), scale), a.width - i);
    }
}

template <class T>
void layer_norm_row(const qw_norm_arguments& a, int64_t row) {
    const LayerNorm<T> normed(static_cast<const T*>(a.x) + row * a.x_stride, a.width, a.weight, a.bias, a.offset, a.epsilon);
    T* y = static_cast<T*>(a.y) + row * a.y_stride;
    for (int64_t i = 0; i < a.width; i += kLanes) store_some(y + i, normed.at(i), a.width - i);
}

void norm(const qw_norm_arguments& a, int64_t row) {
    if (a.type == QW_BF16) {
        a.bias == nullptr ? rms_norm_row<bf16>(a, row) : layer_norm_row<bf16>(a, row);
    } else {
        a.bias == nullptr ? rms_norm_row<float>(a, row) : layer_norm_row<float>(a, row);
    }
}

}  // namespace
}  // namespace qwench
