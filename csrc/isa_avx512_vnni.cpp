// AVX512-VNNI: four products of bytes an instruction. Only linear layers over codes.
#include "kernels.h"
#include "simd.h"
#include "simd_codes.h"

#if defined(__AVX512VNNI__)

#include "kernels/nested.inl"
#include "kernels/layers.inl"

namespace qwench {

const CodedPair* avx512_vnni_coded() {
    static const CodedPair kernels = coded_pair();
    return &kernels;
}
LayerKernel avx512_vnni_layer() { return layer_bytes; }

}  // namespace qwench

#else

namespace qwench {
const CodedPair* avx512_vnni_coded() { return nullptr; }
LayerKernel avx512_vnni_layer() { return nullptr; }
}  // namespace qwench

#endif
