// Contexts, and the operations whose tasks are plain: a norm's rows, a mixer's heads.
#include <new>
#include <system_error>

#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

constexpr int64_t kNormValues = 16384;  // a task of a norm is about this many values, or waking a thread costs more

}  // namespace

int32_t qw_interface(void) { return QW_INTERFACE; }

qw_context* qw_open(int32_t threads, const char* isa) {
    const Kernels* kernels = find_kernels(isa);
    if (kernels == nullptr) return nullptr;
    try {
        return new qw_context(kernels, threads);
    } catch (const std::system_error&) {  // no thread could be started
        return nullptr;
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void qw_close(qw_context* context) { delete context; }

void qw_rms_norm(qw_context* context, const qw_norm_arguments* arguments) {
    const qw_norm_arguments& a = *arguments;
    const int64_t rows = divide_up(kNormValues, a.width > 0 ? a.width : 1);
    context->pool.run(divide_up(a.rows, rows), [&](int64_t task) {
        for (int64_t row = task * rows; row < a.rows && row < (task + 1) * rows; ++row) {
            context->kernels->norm(a, row);
        }
    });
}

int32_t qw_delta_net(qw_context* context, const qw_delta_arguments* arguments) {
    const qw_delta_arguments& a = *arguments;
    const int64_t tokens = a.rows == 0 ? 0 : a.starts[a.rows];
    if (!all_within(a.slots, a.rows, a.num_slots) || !all_within(a.save_slots, a.saves, a.num_slots)) return 1;
    if (!all_within(a.save_tokens, a.saves, tokens)) return 1;
    for (int64_t i = 1; i < a.saves; ++i) {
        if (a.save_tokens[i] <= a.save_tokens[i - 1]) return 1;
    }
    context->pool.run(a.rows * a.key_heads, [&](int64_t task) {
        context->kernels->delta_net(a, task / a.key_heads, task % a.key_heads);
    });
    return 0;
}
