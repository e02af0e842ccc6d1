// Memory for weights and scratch. It knows no layout.
#pragma once

#include <cstdint>

namespace qwench {

// A buffer that grows and is never shrunk; its content does not survive growing.
class Scratch {
  public:
    Scratch() = default;
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    // At least `num_bytes`, aligned to a cache line; null where there is not enough memory.
    void* reserve(int64_t num_bytes);

  private:
    void* memory_ = nullptr;
    int64_t size_ = 0;
};

// Cuts a buffer into arrays, each aligned to a cache line. Without a buffer it only finds out how long one must be.
class Layout {
  public:
    explicit Layout(char* memory) : memory_(memory) {}

    template <class T>
    T* take(int64_t count) {
        char* taken = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return reinterpret_cast<T*>(taken);
    }
    int64_t used() const { return used_; }

  private:
    char* memory_;
    int64_t used_ = 0;
};

}  // namespace qwench
