// AMX-INT8.
#include "kernels.h"

namespace qwench {
const CodedKernels* amx_int8_coded() { return avx512_vnni_coded(); }
}  // namespace qwench
