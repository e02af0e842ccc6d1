// Attention inside frames: lays keys and values out, then divides heads and rows of queries among the threads.
#include "frames.h"

#include <algorithm>
#include <atomic>

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

}  // namespace

int32_t qw_frames(qw_context* context, const qw_frames_arguments* arguments) {
    const qw_frames_arguments& a = *arguments;
    const FrameKernels& kernels = a.type == QW_BF16 ? context->kernels->frames_bf16 : context->kernels->frames_f32;
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
        kernels.pack({a, shape, whole.find(task, tiles, tiles), nullptr});
    });
    const Division rows = {a, shape, kFrameTaskRows, whole.keys, whole.values};
    const int64_t pieces = rows.of_a_head();
    std::atomic<int64_t> taken{0};
    pool.run(std::min(workers, a.heads * pieces), [&](int64_t worker) {
        for (int64_t next; (next = taken.fetch_add(1)) < a.heads * pieces;) {
            kernels.attend({a, shape, rows.find(next, pieces, tiles), memory + layout.used() + worker * own});
        }
    });
    return 0;
}
