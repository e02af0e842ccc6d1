// Which kernels this processor can run, best first.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace qwench {

namespace {

#if defined(__x86_64__)

bool has_avx2() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool halves = __get_cpuid(1, &a, &b, &c, &d) && (c & 1U << 29);
    return halves && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_vnni() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1U << 11);
}

bool has_avx512_bf16() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512_vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1U << 5);
}

// The tile registers' state is so large that Linux asks every process to request it.
bool has_amx() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool present = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1U << 22) && (d & 1U << 24) && (d & 1U << 25);
    return has_avx512_bf16() && present && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool is_amd() {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
}

#else

bool is_amd() { return false; }

#endif

// Each set of AVX-512 is the one below it with other multiplications.
std::vector<Kernels> probe_avx512() {
    std::vector<Kernels> found;
#if defined(__x86_64__)
    if (avx512_kernels() == nullptr || !has_avx512()) return found;
    Kernels table = *avx512_kernels();
    found.push_back(table);
    if (avx512_vnni_coded() == nullptr || !has_avx512_vnni()) return found;
    table.name = "avx512-vnni";
    table.coded = *avx512_vnni_coded();
    table.layer_bytes = *avx512_vnni_layer();
    found.push_back(table);
    if (avx512_bf16_linear() == nullptr || !has_avx512_bf16()) return found;
    table.name = "avx512-bf16";
    table.linear_bf16_pairs = avx512_bf16_linear();
    table.frames_bf16 = avx512_bf16_frames();
    found.push_back(table);
    if (amx_bf16_linear() == nullptr || amx_int8_coded() == nullptr || !has_amx()) return found;
    table.name = "amx-bf16";
    table.linear_bf16_pairs = amx_bf16_linear();
    table.pair_inputs = Inputs::tiles;
    table.coded = *amx_int8_coded();
    table.layer_bytes = {};
    found.push_back(table);
#endif
    return found;
}

std::vector<Kernels> probe() {
    std::vector<Kernels> found;
    found.push_back(*scalar_kernels());
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (avx2_kernels() != nullptr && has_avx2()) found.push_back(*avx2_kernels());
#endif
    const std::vector<Kernels> wide = probe_avx512();
    found.insert(found.end(), wide.begin(), wide.end());
    std::reverse(found.begin(), found.end());
    return found;
}

const std::vector<Kernels>& runnable() {
    static const std::vector<Kernels> found = probe();
    return found;
}

}  // namespace

const bool kAsksAhead = !is_amd();

const Kernels* find_kernels(const char* name) {
    for (const Kernels& each : runnable()) {
        if (std::strcmp(name, each.name) == 0) return &each;
    }
    return nullptr;
}

}  // namespace qwench

const char* qw_isas(void) {
    static const std::string names = [] {
        std::string all;
        for (const qwench::Kernels& each : qwench::runnable()) all += (all.empty() ? "" : " ") + std::string(each.name);
        return all;
    }();
    return names.c_str();
}
