// AVX512-VNNI: four products of bytes an instruction. Only the linear layer over codes.
#include "kernels.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AVX512VNNI__)

#include "kernels/quantised.inl"

namespace qwench {

const CodedKernels* avx512_vnni_coded() {
    static const CodedKernels kernels = {code_inputs, correct_inputs, linear_codes};
    return &kernels;
}

}  // namespace qwench

#else

namespace qwench {
const CodedKernels* avx512_vnni_coded() { return nullptr; }
}  // namespace qwench

#endif
