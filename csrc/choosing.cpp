// Choosing from logits: divides a row among the threads, and puts their findings together.
#include <algorithm>

#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

constexpr int64_t kPiece = 64 << 10;   // logits of one task
constexpr int64_t kSummed = 4 << 10;    // logits whose weights are summed together

bool comes_first(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.place < b.place);
}

// Moves the `count` first of the candidates to the front, the last of them to the end of these.
void keep(Candidate* candidates, int64_t size, int64_t count) {
    if (size >= count && count > 0) {
        std::nth_element(candidates, candidates + count - 1, candidates + size, comes_first);
    }
}

}  // namespace

void qw_largest(qw_context* context, int64_t rows, int64_t columns, const float* logits, int64_t stride,
                int64_t* places) {
    context->pool.run(rows, [&](int64_t row) {
        places[row] = context->kernels->find_largest(logits + row * stride, columns);
    });
}

int32_t qw_top(qw_context* context, int64_t columns, const float* logits, int64_t count, float* values,
               int64_t* places) {
    const int64_t pieces = std::max<int64_t>(1, columns / kPiece), size = divide_up(columns, pieces);
    const int64_t room = 2 * count + kTrial;
    Layout measured(nullptr);
    measured.take<Candidate>(pieces * room);
    measured.take<int64_t>(pieces);
    Layout layout(static_cast<char*>(context->choices.reserve(measured.used())));
    Candidate* found = layout.take<Candidate>(pieces * room);
    int64_t* sizes = layout.take<int64_t>(pieces);
    if (found == nullptr) return 1;
    context->pool.run(pieces, [&](int64_t piece) {
        const int64_t last = std::min(columns, (piece + 1) * size);
        sizes[piece] = context->kernels->gather_top(logits, piece * size, last, count, found + piece * room, keep);
    });
    Candidate* end = found + sizes[0];
    for (int64_t piece = 1; piece < pieces; ++piece) {
        end = std::copy(found + piece * room, found + piece * room + sizes[piece], end);
    }
    std::partial_sort(found, found + count, end, comes_first);
    for (int64_t i = 0; i < count; ++i) {
        values[i] = found[i].logit;
        places[i] = found[i].place;
    }
    return 0;
}

int32_t qw_draw(qw_context* context, qw_draw_arguments* arguments) {
    const qw_draw_arguments& a = *arguments;
    const int64_t blocks = divide_up(a.columns, kSummed);
    Layout measured(nullptr);
    measured.take<double>(a.columns);
    measured.take<double>(blocks);
    Layout layout(static_cast<char*>(context->choices.reserve(measured.used())));
    double* weights = layout.take<double>(a.columns);
    double* sums = layout.take<double>(blocks);
    if (weights == nullptr) return 1;
    const Weighing weighing = {a.maximum, 1.0 / a.temperature, a.floor};
    context->pool.run(blocks, [&](int64_t block) {
        const int64_t first = block * kSummed, count = std::min(kSummed, a.columns - first);
        sums[block] = context->kernels->weigh_logits(a.logits + first, count, weighing, weights + first);
    });
    double total = 0.0, before = 0.0;
    for (int64_t block = 0; block < blocks; ++block) total += sums[block];
    const double point = a.point * total;
    int64_t block = 0;
    while (block + 1 < blocks && before + sums[block] <= point) before += sums[block++];
    // Rounding can carry the point past the last token; the last one that has any weight is meant then.
    int64_t chosen = -1;
    for (int64_t i = block * kSummed; i < a.columns; ++i) {
        if (weights[i] == 0.0) continue;
        chosen = i;
        before += weights[i];
        if (before > point) break;
    }
    for (int64_t i = block * kSummed; chosen < 0 && i > 0; --i) {
        if (weights[i - 1] > 0.0) chosen = i - 1;
    }
    arguments->total = total;
    arguments->place = chosen;
    return 0;
}
