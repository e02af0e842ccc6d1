// Programs: fills in a step's blanks and carries out one instruction after the other. It knows neither models nor what
// the numbers of a step mean, but for the few that size its scratch memory.
#include <cstring>

#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

static_assert(sizeof(void*) == sizeof(int64_t), "a blank is a 64-bit integer or a pointer");

constexpr int64_t kTaskValues = 16384;  // a task takes about this many numbers, or waking a thread costs more

// Calls piece(row, first, count) until all `rows` x `width` numbers are covered, in tasks of several rows or of parts of one.
template <class Piece>
void for_each_piece(Pool& pool, int64_t rows, int64_t width, const Piece& piece) {
    const int64_t part = width < kTaskValues ? width : kTaskValues;
    const int64_t parts = part > 0 ? divide_up(width, part) : 0, together = part > 0 ? divide_up(kTaskValues, part) : 1;
    const int64_t blocks = parts > 1 ? rows : divide_up(rows, together), height = parts > 1 ? 1 : together;
    pool.run(blocks * parts, [&](int64_t task) {
        const int64_t begin = task / parts * height, first = task % parts * part;
        const int64_t count = width - first < part ? width - first : part;
        for (int64_t row = begin; row < rows && row < begin + height; ++row) piece(row, first, count);
    });
}

int32_t combine(qw_context* context, const qw_pointwise_arguments& a) {
    for_each_piece(context->pool, a.rows, a.width, [&](int64_t row, int64_t first, int64_t count) {
        context->kernels->pointwise(a, row, first, count);
    });
    return 0;
}

int32_t rotate(qw_context* context, const qw_rotation_arguments& a) {
    for_each_piece(context->pool, a.tokens, a.heads * a.head_dim, [&](int64_t token, int64_t first, int64_t count) {
        const int64_t last = divide_up(first + count, a.head_dim);
        for (int64_t head = divide_up(first, a.head_dim); head < last; ++head) context->kernels->rotate(a, token, head);
    });
    return 0;
}

int32_t take_rows(const qw_take_arguments& a) {
    if (!all_within(a.ids, a.count, a.rows)) return QW_OUT_OF_RANGE;
    const int64_t size = value_bytes(a.type);
    for (int64_t i = 0; i < a.count; ++i) {
        const char* x = static_cast<const char*>(a.x) + a.ids[i] * a.x_stride * size;
        std::memcpy(static_cast<char*>(a.y) + i * a.y_stride * size, x, static_cast<size_t>(a.width * size));
    }
    return 0;
}

int32_t widen_rows(qw_context* context, const qw_widen_arguments& a) {
    context->pool.run(a.rows, [&](int64_t row) { context->kernels->widen(a, row); });
    return 0;
}

template <class Arguments>
const Arguments& as(const qw_instruction& instruction) {
    return *static_cast<const Arguments*>(instruction.arguments);
}

int32_t carry_out(qw_context* context, const qw_instruction& instruction) {
    switch (instruction.operation) {
        case QW_LINEAR:
            return qw_linear_many(context, &as<qw_linear_arguments>(instruction), instruction.count) == 0 ? 0 : QW_NO_MEMORY;
        case QW_RMS_NORM:
            qw_rms_norm(context, &as<qw_norm_arguments>(instruction));
            return 0;
        case QW_DELTA_NET:
            return qw_delta_net(context, &as<qw_delta_arguments>(instruction)) == 0 ? 0 : QW_OUT_OF_RANGE;
        case QW_ATTENTION:
            return qw_attention(context, &as<qw_attention_arguments>(instruction));
        case QW_EXPERTS:
            return qw_experts(context, &as<qw_experts_arguments>(instruction)) == 0 ? 0 : QW_NO_MEMORY;
        case QW_UNPACK_ROWS:
            return qw_unpack_rows(context, &as<qw_unpack_arguments>(instruction)) == 0 ? 0 : QW_OUT_OF_RANGE;
        case QW_POINTWISE:
            return combine(context, as<qw_pointwise_arguments>(instruction));
        case QW_ROTATION:
            return rotate(context, as<qw_rotation_arguments>(instruction));
        case QW_TAKE_ROWS:
            return take_rows(as<qw_take_arguments>(instruction));
        case QW_LAYER:
            return qw_layer(context, &as<qw_layer_arguments>(instruction)) == 0 ? 0 : QW_NO_MEMORY;
        case QW_FRAMES:
            return qw_frames(context, &as<qw_frames_arguments>(instruction));
        default:
            return widen_rows(context, as<qw_widen_arguments>(instruction));
    }
}

}  // namespace

int32_t qw_run(qw_context* context, const qw_program* program, int64_t* step, int64_t* failed) {
    const int64_t token_bytes = step[QW_TOKENS] * program->token_bytes;
    char* scratch = static_cast<char*>(context->values.reserve(token_bytes + step[QW_LOGITS] * program->logit_bytes));
    *failed = -1;
    if (scratch == nullptr) return QW_NO_MEMORY;
    step[QW_TOKEN_SCRATCH] = reinterpret_cast<int64_t>(scratch);
    step[QW_LOGIT_SCRATCH] = reinterpret_cast<int64_t>(scratch + token_bytes);
    for (int64_t i = 0; i < program->num_blanks; ++i) {
        const qw_blank& blank = program->blanks[i];
        const int64_t value = step[blank.base] + step[blank.count] * blank.factor + blank.offset;
        std::memcpy(blank.field, &value, sizeof value);
    }
    for (int64_t i = 0; i < program->num_instructions; ++i) {
        *failed = i;
        if (const int32_t status = carry_out(context, program->instructions[i]); status != 0) return status;
    }
    return 0;
}
