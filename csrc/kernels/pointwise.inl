// Operations that take numbers one by one, in pieces of rows. Included once per instruction set, after simd.h.

#include "powers.inl"
#include "turning.inl"

namespace qwench {
namespace {

template <class T>
void pointwise_piece(const qw_pointwise_arguments& a, int64_t row, int64_t first, int64_t count) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride + first;
    const T* y = static_cast<const T*>(a.y) + row * a.y_stride + (a.y_width == 1 ? 0 : first);
    T* output = static_cast<T*>(a.output) + row * a.output_stride + first;
    const auto each = [&](auto combine) {
        const V same = all(widen(*y));
        for (int64_t i = 0; i < count; i += kLanes) {
            const V other = a.y_width == 1 ? same : load_some(y + i, count - i);
            store_some(output + i, combine(load_some(x + i, count - i), other), count - i);
        }
    };
    if (a.kind == QW_ADD) {
        each([](V one, V other) { return add(one, other); });
    } else if (a.kind == QW_SILU_MULTIPLY) {
        each([](V one, V other) { return mul(rounded<T>(silu(one)), other); });
    } else if (a.kind == QW_GELU) {
        each([](V one, V) { return gelu<std::is_same_v<T, bf16>>(one); });
    } else {
        each([](V one, V other) { return mul(one, rounded<T>(sigmoid(other))); });
    }
}

void pointwise(const qw_pointwise_arguments& a, int64_t row, int64_t first, int64_t count) {
    if (a.type == QW_BF16) {
        pointwise_piece<bf16>(a, row, first, count);
    } else {
        pointwise_piece<float>(a, row, first, count);
    }
}

template <class T>
void rotate_head(const qw_rotation_arguments& a, int64_t token, int64_t head) {
    const T* x = static_cast<const T*>(a.x) + token * a.x_stride + head * a.head_dim;
    T* output = static_cast<T*>(a.output) + token * a.output_stride + head * a.head_dim;
    turn_head(x, output, a.head_dim, a.half, a.cosine + token * a.half, a.sine + token * a.half);
}

void rotate(const qw_rotation_arguments& a, int64_t token, int64_t head) {
    if (a.type == QW_BF16) {
        rotate_head<bf16>(a, token, head);
    } else {
        rotate_head<float>(a, token, head);
    }
}

// What is written never passes what is still to be read.
void widen_row(const qw_widen_arguments& a, int64_t row) {
    float* y = a.y + row * a.width;
    const bf16* x = reinterpret_cast<const bf16*>(y) + a.width;
    for (int64_t i = 0; i < a.width; i += kLanes) store_some(y + i, load_some(x + i, a.width - i), a.width - i);
}

}  // namespace
}  // namespace qwench
