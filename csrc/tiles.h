// The shapes of AMX's tile registers. It knows nothing of what lies in them.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qwench {
namespace {

struct alignas(64) TileShapes {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t row_count, int64_t bytes) {
        rows[tile] = static_cast<uint8_t>(row_count);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
    void load() const {
        asm volatile("" : : "r"(this) : "memory");  // GCC takes only the first 8 bytes for read, and drops the rest
        _tile_loadconfig(this);
    }
};

}  // namespace
}  // namespace qwench
