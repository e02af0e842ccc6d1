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
constexpr int64_t kHugePage = 2 << 20;

}  // namespace

Scratch::~Scratch() { std::free(memory_); }

void* Scratch::reserve(int64_t num_bytes) {
    if (num_bytes <= size_) return memory_;
    std::free(memory_);
    const bool huge = num_bytes >= kHugePage;  // rows of outputs lie a page apart, and the processor remembers few pages
    const int64_t unit = huge ? kHugePage : kCacheLine;
    size_ = (num_bytes + unit - 1) / unit * unit;
    memory_ = std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(size_));
    if (memory_ == nullptr) size_ = 0;
#if defined(MADV_HUGEPAGE)
    if (huge && memory_ != nullptr) madvise(memory_, static_cast<size_t>(size_), MADV_HUGEPAGE);
#endif
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
