// AVX512-VNNI: four products of bytes an instruction. Only the linear layer over codes.
#include "kernels.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AVX512VNNI__)

#include "kernels/nested.inl"

namespace qwench {

const CodedPair* avx512_vnni_coded() {
    static const CodedPair kernels = coded_pair();
    return &kernels;
}

}  // namespace qwench

#else

namespace qwench {
const CodedPair* avx512_vnni_coded() { return nullptr; }
}  // namespace qwench

#endif
