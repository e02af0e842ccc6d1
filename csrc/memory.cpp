// Weights on huge pages, and scratch: see memory.h and include/qwench.h.
#include "memory.h"

#include <cstdlib>
#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#include "include/qwench.h"

namespace qwench {

namespace {

constexpr int64_t kCacheLine = 64;

int64_t whole_lines(int64_t num_bytes) { return (num_bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

}  // namespace

Scratch::~Scratch() { std::free(memory_); }

void* Scratch::reserve(int64_t num_bytes) {
    if (num_bytes <= size_) return memory_;
    std::free(memory_);
    size_ = whole_lines(num_bytes);
    memory_ = std::aligned_alloc(kCacheLine, static_cast<size_t>(size_));
    if (memory_ == nullptr) size_ = 0;
    return memory_;
}

}  // namespace qwench

void* qw_memory_map(int64_t num_bytes) {
#if defined(__unix__) || defined(__APPLE__)
    void* memory = mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
    madvise(memory, static_cast<size_t>(num_bytes), MADV_HUGEPAGE);  // a wish: without huge pages it is only slower
#endif
    return memory;
#else
    return std::calloc(static_cast<size_t>(num_bytes), 1);
#endif
}

void qw_memory_unmap(void* memory, int64_t num_bytes) {
#if defined(__unix__) || defined(__APPLE__)
    munmap(memory, static_cast<size_t>(num_bytes));
#else
    std::free(memory);
#endif
}
