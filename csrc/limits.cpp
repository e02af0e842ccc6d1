// What the machine does at most: loops that only read, or only multiply, on all threads of a context.
//
// They stand beside every speed the kernels reach. Each asks for its instructions itself, so that one file serves every
// processor; a loop the compiler or the processor does not know is left out of qw_limits. Knows no operation of a model.
#include <cstring>
#include <string>
#include <vector>

#include "context.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kChunk = 1 << 20;      // bytes a thread reads in a row: long enough for the prefetcher to run ahead
constexpr int kChains = 12;              // independent sums of QW_LOOP, so that none waits for the one before it
constexpr int kTiles = 4;                // of 8 tile registers, 4 collect and 4 hold inputs
constexpr int64_t kTileOperations = 2 * 16 * 16;  // a tile multiplication: 16 x 16 sums of `depth` products

using Loop = void (*)(int64_t rounds);

struct Limit {
    const char* name;
    Loop loop;
    int64_t operations;  // of one round; a multiplication and an addition are two
};

uint64_t read_words(const char* from, int64_t num_bytes) {
    uint64_t found = 0;
    for (int64_t i = 0; i + 8 <= num_bytes; i += 8) {
        uint64_t word;
        std::memcpy(&word, from + i, 8);
        found |= word;
    }
    return found;
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) uint64_t read_avx512(const char* from, int64_t num_bytes) {
    __m512i found[8];
    for (auto& each : found) each = _mm512_setzero_si512();
    for (int64_t i = 0; i + 512 <= num_bytes; i += 512) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) found[j] = _mm512_or_si512(found[j], _mm512_loadu_si512(from + i + 64 * j));
    }
    for (const auto& each : found) found[0] = _mm512_or_si512(found[0], each);
    return static_cast<uint64_t>(_mm512_reduce_or_epi64(found[0]));
}

__attribute__((target("avx2"))) uint64_t read_avx2(const char* from, int64_t num_bytes) {
    __m256i found[8];
    for (auto& each : found) each = _mm256_setzero_si256();
    for (int64_t i = 0; i + 256 <= num_bytes; i += 256) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m256i next = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 32 * j));
            found[j] = _mm256_or_si256(found[j], next);
        }
    }
    uint64_t words[4], all = 0;
    for (const auto& each : found) {
        std::memcpy(words, &each, sizeof(words));
        all |= words[0] | words[1] | words[2] | words[3];
    }
    return all;
}

// One multiplication over and over into independent sums, each a variable of its own so that it stays in a register; the
// empty instruction keeps the compiler from leaving it out. `step` says what becomes of `sum`.
#define QW_STEP(variable, step)             \
    {                                       \
        auto& sum = variable;               \
        sum = step;                         \
        asm volatile("" : "+v"(variable));  \
    }
#define QW_LOOP(name, instructions, vector, start, step)                                                      \
    __attribute__((target(instructions))) void name(int64_t rounds) {                                         \
        vector a = start;                                                                                     \
        asm volatile("" : "+v"(a)); /* what is in it is not for the compiler to know */                       \
        vector s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a; \
        for (int64_t round = 0; round < rounds; ++round) {                                                    \
            QW_STEP(s0, step) QW_STEP(s1, step) QW_STEP(s2, step) QW_STEP(s3, step)                           \
            QW_STEP(s4, step) QW_STEP(s5, step) QW_STEP(s6, step) QW_STEP(s7, step)                           \
            QW_STEP(s8, step) QW_STEP(s9, step) QW_STEP(s10, step) QW_STEP(s11, step)                         \
        }                                                                                                     \
    }
QW_LOOP(fp32_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_fmadd_ps(a, a, sum))
QW_LOOP(int8_avx2, "avx2", __m256i, _mm256_setzero_si256(),
        _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(sum, a), a)))
QW_LOOP(fp32_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(a, a, sum))
QW_LOOP(int8_vnni, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(sum, a, a))
QW_LOOP(bf16_avx512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(),
            _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(a)))

bool bit(unsigned leaf, unsigned part, int register_index, int number) {
    unsigned found[4] = {0, 0, 0, 0};
    return __get_cpuid_count(leaf, part, &found[0], &found[1], &found[2], &found[3]) != 0 &&
           (found[register_index] >> number & 1U) != 0;
}

#if !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11 || defined(__clang__) && __clang_major__ >= 12
#define QW_TILES 1

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};
};

__attribute__((target("amx-tile"))) void open_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
        config.column_bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    asm volatile("" : : "r"(&config) : "memory");  // GCC takes only the first 8 bytes for read, and drops the rest
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

__attribute__((target("amx-tile,amx-int8"))) void int8_amx(int64_t rounds) {
    open_tiles();
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
}

__attribute__((target("amx-tile,amx-bf16"))) void bf16_amx(int64_t rounds) {
    open_tiles();
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#endif

bool has_avx512() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }

// Tiles need the system's permission, which find_kernels asked for before it named an "amx" kernel.
bool has_tiles() { return qwench::find_kernels("amx-bf16") != nullptr; }

#else

void fp32_scalar(int64_t rounds) {
    float sums[kChains] = {};
    for (int64_t round = 0; round < rounds; ++round) {
        for (float& sum : sums) sum = sum * sum + sum;
    }
    volatile float kept = sums[0];
    (void)kept;
}

#endif

std::vector<Limit> probe() {
    std::vector<Limit> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
#if defined(QW_TILES)
    if (has_tiles() && bit(7, 0, 3, 25)) found.push_back({"int8 amx", int8_amx, kTiles * kTileOperations * 64});
    if (has_tiles()) found.push_back({"bf16 amx", bf16_amx, kTiles * kTileOperations * 32});
#endif
    if (has_avx512() && bit(7, 0, 2, 11)) found.push_back({"int8 avx512-vnni", int8_vnni, kChains * 128});
    if (has_avx512() && bit(7, 1, 0, 5)) found.push_back({"bf16 avx512", bf16_avx512, kChains * 64});
    if (has_avx512()) found.push_back({"fp32 avx512", fp32_avx512, kChains * 32});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        found.push_back({"int8 avx2", int8_avx2, kChains * 64});
        found.push_back({"fp32 avx2", fp32_avx2, kChains * 16});
    }
#else
    found.push_back({"fp32 scalar", fp32_scalar, kChains * 2});
#endif
    return found;
}

const std::vector<Limit>& limits() {
    static const std::vector<Limit> found = probe();
    return found;
}

uint64_t read_chunk(const char* from, int64_t num_bytes) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_avx512(from, num_bytes);
    if (__builtin_cpu_supports("avx2")) return read_avx2(from, num_bytes);
#endif
    return read_words(from, num_bytes);
}

}  // namespace

const char* qw_limits(void) {
    static const std::string names = [] {
        std::string all;
        for (const Limit& each : limits()) all += (all.empty() ? "" : "\n") + std::string(each.name);
        return all;
    }();
    return names.c_str();
}

int64_t qw_limit_run(qw_context* context, const char* name, int32_t threads, int64_t rounds) {
    for (const Limit& each : limits()) {
        if (std::strcmp(name, each.name) != 0) continue;
        context->pool.run(threads, [&](int64_t) { each.loop(rounds); });
        return threads * rounds * each.operations;
    }
    return 0;
}

int64_t qw_limit_read(qw_context* context, int32_t threads, const void* memory, int64_t num_bytes) {
    const char* bytes = static_cast<const char*>(memory);
    const int64_t share = num_bytes / threads / kChunk * kChunk;  // each thread reads one stretch, as a kernel does
    std::vector<uint64_t> found(static_cast<size_t>(threads));
    context->pool.run(threads, [&](int64_t task) {
        const int64_t end = task + 1 == threads ? num_bytes : (task + 1) * share;
        uint64_t all = 0;
        for (int64_t at = task * share; at < end; at += kChunk) {
            all |= read_chunk(bytes + at, end - at < kChunk ? end - at : kChunk);
        }
        found[static_cast<size_t>(task)] = all;
    });
    uint64_t all = 0;
    for (const uint64_t each : found) all |= each;
    return static_cast<int64_t>(all);
}
