// Numbers rounded to codes, panel by panel: the arithmetic is kernels/rounding.inl.
#include <algorithm>

#include "context.h"
#include "packing.h"
#include "rounding.h"

namespace qwench {

bool is_roundable(const qw_weight_type& type) {
    if (!is_known(type) || type.element != QW_CODES || type.has_table != (type.scale_type == QW_BF16)) return false;
    const bool is_signed = 2 * type.zero == 1 << type.bits;
    if (!type.nested) return !type.has_min && type.block == kBlock && (type.has_table || is_signed);
    if (type.has_min) return !type.has_table && type.block == kBlock && type.bits < 8 && type.zero == 0;
    return !type.has_table && type.block == kBlock / 2 && is_signed;
}

}  // namespace qwench

using namespace qwench;

int32_t qw_round(qw_context* context, const qw_round_arguments* arguments) {
    if (!is_roundable(*arguments->type)) return 1;
    context->pool.run(divide_up(arguments->out, kPanel), [&](int64_t panel) {
        const int64_t first = panel * kPanel;
        context->kernels->round_rows(*arguments, first, std::min(kPanel, arguments->out - first));
    });
    return 0;
}
