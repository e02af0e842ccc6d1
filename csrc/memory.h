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

}  // namespace qwench
