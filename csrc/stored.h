// Rows of quantised weights as arrays or files hold them, taken apart a chunk of one output at a time. It knows neither
// the packed layout nor how the bytes came into memory.
#pragma once

#include <cstdint>

#include "quantised.h"

namespace qwench {

// 256 codes of one output (the last chunk of a row may hold fewer), one a byte, with their scales and mins.
struct Chunk {
    alignas(8) uint8_t codes[QW_SUPER_BLOCK];
    uint8_t scales[2 * QW_SUPER_BLOCK / 16], mins[2 * QW_SUPER_BLOCK / 16];  // bytes where nested, else 16 bits each
    uint8_t super_scale[2], super_min[2];
};

// Rows of one matrix in memory.
class StoredRows {
  public:
    virtual ~StoredRows() = default;
    // Blocks [first, first + blocks) of a row; `first` begins a chunk.
    virtual void read(int64_t row, int64_t first, int64_t blocks, Chunk& chunk) const = 0;
};

// The arrays of qw_codes, codes one a byte or as strings of bits.
class ArrayRows : public StoredRows {
  public:
    ArrayRows(const qw_codes& arrays, bool bits) : arrays_(arrays), bits_(bits) {}
    void read(int64_t row, int64_t first, int64_t blocks, Chunk& chunk) const override;

  private:
    qw_codes arrays_;
    bool bits_;
};

// How a type of GGUF's blocks is taken apart: `count` blocks of it from `from` on.
struct BlockFormat {
    int64_t numbers, bytes;  // of a block
    bool (*fits)(const qw_weight_type& type);
    void (*read)(const uint8_t* from, int64_t count, Chunk& chunk);
};

// The format of a number of GGUF's; null for one that is not computed as it is.
const BlockFormat* block_format(int32_t number);

class BlockRows : public StoredRows {
  public:
    BlockRows(const BlockFormat& format, const uint8_t* rows, int64_t row_bytes)
        : format_(format), rows_(rows), row_bytes_(row_bytes) {}
    void read(int64_t row, int64_t first, int64_t blocks, Chunk& chunk) const override;

  private:
    const BlockFormat& format_;
    const uint8_t* rows_;
    int64_t row_bytes_;
};

// Bytes of a row of each of qw_codes' arrays, codes as strings of bits.
struct RowBytes {
    int64_t each[5];
};
RowBytes row_bytes(const qw_weight_type& type, int64_t in);

// Whether all scales and mins of `rows` rows are finite (and powers of two in range), which only damaged files have not.
bool are_finite(const qw_codes& arrays, int64_t rows, bool bits);

}  // namespace qwench
