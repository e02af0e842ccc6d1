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
const LayerKernels* avx512_vnni_layer() {
    static const LayerKernels kernels = {round_tile, layer_bytes};
    return &kernels;
}

}  // namespace qwench

#else

namespace qwench {
const CodedPair* avx512_vnni_coded() { return nullptr; }
const LayerKernels* avx512_vnni_layer() { return nullptr; }
}  // namespace qwench

#endif
