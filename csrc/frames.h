// Attention inside frames: how keys and values are laid out for it, and what one task of it is.
//
// Of each head of each frame the keys lie as matrices of 64 positions by the head's width, the values as one matrix of
// the width (rounded up to 16) by all positions, both in the order of packed weights: one element of fp32 or a pair of
// BF16 a step. What is behind the last position is zeros.
#pragma once

#include <cstdint>

#include "include/qwench.h"
#include "memory.h"
#include "packed.h"

namespace qwench {

constexpr int64_t kFrameSegment = 128;  // positions that are weighed together
constexpr int64_t kFrameRows = 24;      // queries whose scores are held at once
constexpr int64_t kFrameTaskRows = 96;  // queries that share what a task reads
static_assert(kFrameSegment % kGroup == 0 && kFrameTaskRows % kFrameRows == 0, "tasks are whole blocks");

struct FrameShape {
    bool pairs;
    int64_t head_dim, columns;
    float scale;  // of scores that are exponents of 2

    explicit FrameShape(const qw_frames_arguments& a)
        : pairs(a.type == QW_BF16), head_dim(a.head_dim), columns(round_up(a.head_dim, kPanel)),
          scale(a.scale * 1.44269504f) {}

    int64_t step() const { return pairs ? 2 : 1; }  // elements
    int64_t key_tile_bytes() const { return kGroup * head_dim * kStepBytes / step(); }
    int64_t value_tile_bytes() const { return kGroup * columns * kStepBytes / step(); }
    int64_t task_bytes() const;
};

// Some positions of one head of one frame: [first, first + count) of `length`, the first of which is token `start`.
struct FramePiece {
    char* keys;  // of the whole frame
    char* values;
    int64_t head, start, length, first, count;
};

struct FrameTask {
    const qw_frames_arguments& arguments;
    const FrameShape& shape;
    FramePiece piece;
    char* scratch;
};

// Lays out the keys and values of a tile, which is the piece; answers the queries of the piece.
struct FrameKernels {
    void (*pack)(const FrameTask& task);
    void (*attend)(const FrameTask& task);
};

// Memory of one task.
struct FrameScratch {
    void* queries;   // [kFrameTaskRows, head_dim], as inputs of a linear kernel
    void* weights;   // [kFrameRows, kFrameSegment], the same
    float* scores;   // [kFrameRows, kFrameSegment]
    float* outputs;  // [kFrameTaskRows, columns]
    float* totals;   // [kFrameTaskRows, 16], each row's still to be added up
    float* maxima;   // [kFrameTaskRows]
    float* factors;  // [kFrameRows] of what was found before

    FrameScratch(Layout& layout, const FrameShape& shape)
        : queries(layout.take<float>(kFrameTaskRows * shape.head_dim)),
          weights(layout.take<float>(kFrameRows * kFrameSegment)),
          scores(layout.take<float>(kFrameRows * kFrameSegment)),
          outputs(layout.take<float>(kFrameTaskRows * shape.columns)),
          totals(layout.take<float>(kFrameTaskRows * kPanel)),
          maxima(layout.take<float>(kFrameTaskRows)),
          factors(layout.take<float>(round_up(kFrameRows, kPanel))) {}
};

inline int64_t FrameShape::task_bytes() const {
    Layout layout(nullptr);
    FrameScratch(layout, *this);
    return layout.used();
}

}  // namespace qwench
