// Attention inside frames: lays keys and values out, then divides heads and rows of queries among the threads.
#include "frames.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "bf16.h"
#include "context.h"

using namespace qwench;

namespace {

// Pieces of `size` positions of every frame of every head, head after head.
struct Division {
    const qw_frames_arguments& a;
    const FrameShape& shape;
    int64_t size;
    char* keys;
    char* values;

    int64_t of_a_head() const {
        int64_t pieces = 0;
        for (int64_t frame = 0; frame < a.frames; ++frame) pieces += divide_up(length(frame), size);
        return pieces;
    }
    int64_t length(int64_t frame) const { return a.starts[frame + 1] - a.starts[frame]; }

    // Piece `index`, where a head has `pieces`; of them all tiles of 64 positions lie side by side.
    FramePiece find(int64_t index, int64_t pieces, int64_t tiles) const {
        int64_t left = index % pieces, frame = 0, before = index / pieces * tiles;
        for (; left >= divide_up(length(frame), size); ++frame) {
            left -= divide_up(length(frame), size);
            before += divide_up(length(frame), kGroup);
        }
        return {keys + before * shape.key_tile_bytes(), values + before * shape.value_tile_bytes(), index / pieces,
                a.starts[frame], length(frame), left * size, std::min(size, length(frame) - left * size)};
    }
};

// Rows [count, width], `stride` bytes apart, as columns of a tile: a step of the depth, fp32 or a pair of BF16, is one word.
// Some rows at a time, so that they stay in the first cache although they lie far apart.
void pack_keys(const char* rows, int64_t stride, int64_t count, int64_t steps, char* to) {
    constexpr int64_t kRows = 16;
    for (int64_t first = 0; first < count; first += kRows) {
        const int64_t here = std::min(kRows, count - first);
        const char* from = rows + first * stride;
        char* target = to + first * kStepBytes;
        for (int64_t step = 0; step < steps; ++step, from += kStepBytes, target += kGroup * kStepBytes) {
            for (int64_t row = 0; row < here; ++row) std::memcpy(target + row * kStepBytes, from + row * stride, kStepBytes);
        }
    }
}

void pack_values(const float* rows, int64_t stride, int64_t count, const FrameShape& shape, float* to) {
    for (int64_t row = 0; row < count; ++row) {
        std::memcpy(to + row * shape.columns, rows + row * stride, static_cast<size_t>(shape.head_dim) * sizeof(float));
    }
}

// Numbers of two rows in turns.
void pack_pair(const bf16* __restrict one, const bf16* __restrict other, int64_t width, uint32_t* __restrict to) {
    for (int64_t i = 0; i < width; ++i) to[i] = one[i].bits | static_cast<uint32_t>(other[i].bits) << 16;
}

// Two rows side by side; beside the last of an odd number lie zeros.
void pack_values(const bf16* rows, int64_t stride, int64_t count, const FrameShape& shape, uint32_t* to) {
    const int64_t width = shape.head_dim;
    for (int64_t row = 0; row < count; row += 2, to += shape.columns) {
        const bf16* one = rows + row * stride;
        if (row + 1 < count) {
            pack_pair(one, one + stride, width, to);
        } else {
            for (int64_t i = 0; i < width; ++i) to[i] = one[i].bits;
        }
    }
}

// The keys and values of one tile, which is the piece.
template <class T>
void pack_tile(const qw_frames_arguments& a, const FrameShape& shape, const FramePiece& piece) {
    const int64_t tile = piece.first / kGroup, place = (piece.start + piece.first) * a.stride + piece.head * a.head_dim;
    char* keys = piece.keys + tile * shape.key_tile_bytes();
    char* values = piece.values + tile * shape.value_tile_bytes();
    if (piece.count < kGroup) std::memset(keys, 0, static_cast<size_t>(shape.key_tile_bytes()));
    if (piece.count < kGroup || shape.columns > a.head_dim) {
        std::memset(values, 0, static_cast<size_t>(shape.value_tile_bytes()));
    }
    const T* key = static_cast<const T*>(a.key) + place;
    const T* value = static_cast<const T*>(a.value) + place;
    const int64_t bytes = a.stride * static_cast<int64_t>(sizeof(T)), steps = a.head_dim / shape.step();
    pack_keys(reinterpret_cast<const char*>(key), bytes, piece.count, steps, keys);
    using Word = std::conditional_t<std::is_same_v<T, bf16>, uint32_t, T>;
    pack_values(value, a.stride, piece.count, shape, reinterpret_cast<Word*>(values));
}

}  // namespace

int32_t qw_frames(qw_context* context, const qw_frames_arguments* arguments) {
    const qw_frames_arguments& a = *arguments;
    const auto attend = a.type == QW_BF16 ? context->kernels->frames_bf16 : context->kernels->frames_f32;
    const FrameShape shape(a);
    Pool& pool = context->pool;
    Division whole = {a, shape, kGroup, nullptr, nullptr};
    const int64_t tiles = whole.of_a_head(), workers = pool.threads();
    const auto lay_out = [&](Layout& layout) {
        whole.keys = layout.take<char>(a.heads * tiles * shape.key_tile_bytes());
        whole.values = layout.take<char>(a.heads * tiles * shape.value_tile_bytes());
    };
    Layout measured(nullptr);
    lay_out(measured);
    const int64_t own = shape.task_bytes();
    char* memory = static_cast<char*>(context->partials.reserve(measured.used() + workers * own));
    if (memory == nullptr) return 2;
    Layout layout(memory);
    lay_out(layout);
    pool.run(a.heads * tiles, [&](int64_t task) {
        const FramePiece piece = whole.find(task, tiles, tiles);
        shape.pairs ? pack_tile<bf16>(a, shape, piece) : pack_tile<float>(a, shape, piece);
    });
    const Division rows = {a, shape, kFrameTaskRows, whole.keys, whole.values};
    const int64_t pieces = rows.of_a_head();
    std::atomic<int64_t> taken{0};
    pool.run(std::min(workers, a.heads * pieces), [&](int64_t worker) {
        for (int64_t next; (next = taken.fetch_add(1)) < a.heads * pieces;) {
            attend({a, shape, rows.find(next, pieces, tiles), memory + layout.used() + worker * own});
        }
    });
    return 0;
}
