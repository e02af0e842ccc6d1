// Norms of one row: root-mean-square, and layer norms. Included once per instruction set, after simd.h.

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
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    const T* weight = static_cast<const T*>(a.weight);
    const T* bias = static_cast<const T*>(a.bias);
    T* y = static_cast<T*>(a.y) + row * a.y_stride;
    const float width = static_cast<float>(a.width);
    V total = zero(), squares = zero();
    for (int64_t i = 0; i < a.width; i += kLanes) total = add(load_some(x + i, a.width - i), total);
    const V mean = all(sum(total) / width);
    for (int64_t i = 0; i < a.width; i += kLanes) {
        V apart = sub(load_some(x + i, a.width - i), mean);
        if (a.width - i < kLanes) apart = first_lanes(apart, zero(), a.width - i);
        squares = fma(apart, apart, squares);
    }
    const V factor = all(1.0f / std::sqrt(sum(squares) / width + a.epsilon));
    for (int64_t i = 0; i < a.width; i += kLanes) {
        const int64_t n = a.width - i;
        const V scale = mul(add(load_some(weight + i, n), all(a.offset)), factor);
        store_some(y + i, fma(sub(load_some(x + i, n), mean), scale, load_some(bias + i, n)), n);
    }
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
