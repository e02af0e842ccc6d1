// Which kernels this processor can run, best first.
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

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1U << 5);
}

// The tile registers' state is so large that Linux asks every process to request it.
bool has_amx_bf16() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
    constexpr long kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool present = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1U << 22) && (d & 1U << 24);
    return has_avx512() && present && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

#endif

Kernels with_linear(const Kernels& table, const char* name, LinearKernel linear, Inputs inputs) {
    Kernels changed = table;
    changed.name = name;
    changed.linear_bf16_pairs = linear;
    changed.pair_inputs = inputs;
    return changed;
}

std::vector<Kernels> probe() {
    std::vector<Kernels> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (const Kernels* avx512 = avx512_kernels(); avx512 != nullptr && has_avx512()) {
        if (amx_bf16_linear() != nullptr && has_amx_bf16()) {
            found.push_back(with_linear(*avx512, "amx-bf16", amx_bf16_linear(), Inputs::tiles));
        }
        if (avx512_bf16_linear() != nullptr && has_avx512_bf16()) {
            found.push_back(with_linear(*avx512, "avx512-bf16", avx512_bf16_linear(), Inputs::rows));
        }
        found.push_back(*avx512);
    }
    if (avx2_kernels() != nullptr && has_avx2()) found.push_back(*avx2_kernels());
#endif
    found.push_back(*scalar_kernels());
    return found;
}

const std::vector<Kernels>& runnable() {
    static const std::vector<Kernels> found = probe();
    return found;
}

}  // namespace

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
