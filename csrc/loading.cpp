// Rows from files into the packed layout, read and packed by all threads: each takes the next piece, reads it into a small
// buffer that stays in its cache, and packs it from there. Files are read, not mapped: one that shrinks under a mapping
// kills the process, while a short read is an answer.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "context.h"
#include "packing.h"
#include "rounding.h"
#include "stored.h"

namespace qwench {

namespace {

constexpr int kArrays = 5;

// Memory of one thread, as often as it is needed.
class Buffers {
  public:
    // `sizes` bytes each, all aligned; false where there is no memory.
    bool reserve(const int64_t (&sizes)[kArrays], uint8_t* (&arrays)[kArrays]) {
        int64_t whole = 0;
        for (const int64_t size : sizes) whole += round_up(size, kVectorBytes);
        uint8_t* at = static_cast<uint8_t*>(memory_.reserve(whole + kVectorBytes));
        if (at == nullptr) return false;
        for (int i = 0; i < kArrays; ++i) {
            arrays[i] = at;
            at += round_up(sizes[i], kVectorBytes);
        }
        return true;
    }

  private:
    Scratch memory_;
};

int64_t number_bytes(int32_t element) { return element == QW_F32 ? 4 : 2; }
bool is_number(int32_t stored) { return stored == QW_F32 || stored == QW_BF16 || stored == QW_F16; }

// Bytes of a row of each stored array; all 0 where such rows cannot become the type.
RowBytes stored_bytes(const qw_stored_rows& rows) {
    const qw_weight_type& type = *rows.type;
    RowBytes bytes = {};
    if (is_number(rows.stored)) {
        if (type.element != QW_CODES || is_roundable(type)) bytes.each[0] = rows.in * number_bytes(rows.stored);
    } else if (rows.stored == QW_BITS) {
        if (is_roundable(type)) bytes = row_bytes(type, rows.in);
    } else if (const BlockFormat* format = block_format(rows.stored - QW_GGUF)) {
        if (format->fits(type) && rows.in % format->numbers == 0) bytes.each[0] = rows.in / format->numbers * format->bytes;
    }
    return bytes;
}

int32_t read_bytes(int32_t file, uint8_t* to, int64_t count, int64_t offset) {
#if defined(__unix__) || defined(__APPLE__)
    while (count > 0) {
        const ssize_t got = pread(file, to, static_cast<size_t>(count), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) return QW_SHORT;
        to += got;
        offset += got;
        count -= got;
    }
    return 0;
#else
    return -ENOSYS;
#endif
}

// Stored numbers as elements of a packed type.
void convert(int32_t from, const uint8_t* source, bool is_bf16, int64_t count, uint8_t* target) {
    for (int64_t i = 0; i < count; ++i) {
        float value;
        uint16_t half;
        if (from == QW_F32) {
            std::memcpy(&value, source + 4 * i, 4);
        } else {
            std::memcpy(&half, source + 2 * i, 2);
            value = from == QW_BF16 ? widen(bf16{half}) : from_half(half);
        }
        if (is_bf16) {
            put(reinterpret_cast<bf16*>(target) + i, value);
        } else {
            put(reinterpret_cast<float*>(target) + i, value);
        }
    }
}

// One piece, at most 64 rows: what they were read into, and what becomes of them.
class Piece {
  public:
    Piece(const Kernels& kernels, const qw_stored_rows& rows, int64_t index)
        : kernels_(kernels), rows_(rows), type_(*rows.type), skipped_(index * QW_LOAD_ROWS),
          count_(std::min<int64_t>(QW_LOAD_ROWS, rows.rows - skipped_)) {}

    // 0 or why it failed; `bytes` were read.
    int32_t load(Buffers& read, Buffers& made, int64_t& bytes) {
        const RowBytes row = stored_bytes(rows_);
        if (row.each[0] == 0) return QW_UNKNOWN;
        int64_t sizes[kArrays];
        for (int i = 0; i < kArrays; ++i) sizes[i] = row.each[i] * count_;
        if (!read.reserve(sizes, arrays_)) return QW_NO_MEMORY;
        for (int i = 0; i < kArrays; ++i) {
            const int32_t status = read_bytes(rows_.file, arrays_[i], sizes[i], rows_.offsets[i] + skipped_ * row.each[i]);
            if (status != 0) return status;
            bytes += sizes[i];
        }
        if (rows_.stored == QW_BITS) return pack_arrays(codes(arrays_), true);
        if (is_number(rows_.stored)) return type_.element == QW_CODES ? round(made) : pack_numbers(made);
        const BlockFormat& format = *block_format(rows_.stored - QW_GGUF);
        pack(BlockRows(format, arrays_[0], row.each[0]));
        return 0;
    }

  private:
    qw_codes codes(uint8_t* const (&a)[kArrays]) const {
        return {&type_, count_, rows_.in, a[0], a[1], a[2], a[3], a[4], 1.0f};
    }

    int32_t pack_arrays(const qw_codes& arrays, bool bits) {
        if (!are_finite(arrays, count_, bits)) return QW_NOT_FINITE;
        pack(ArrayRows(arrays, bits));
        return 0;
    }

    void pack(const StoredRows& stored) {
        const Target target = {type_, rows_.out, rows_.in, static_cast<uint8_t*>(rows_.packed)};
        const int64_t first = rows_.first + skipped_;
        if (first == 0) put_lead(1.0f, target.packed);
        for (int64_t row = 0; row < count_; row += kPanel) {
            pack_panel(target, (first + row) / kPanel, stored, row, std::min(kPanel, count_ - row));
        }
    }

    int32_t round(Buffers& made) {
        const int64_t depth = num_blocks(type_, rows_.in) * kBlock, scales = depth / type_.block;
        const int64_t supers = type_.nested ? depth / QW_SUPER_BLOCK * 2 : 0;
        const bool min = type_.has_min;
        const int64_t each[kArrays] = {depth, type_.nested ? scales : 2 * scales, min ? scales : 0, supers, min ? supers : 0};
        int64_t sizes[kArrays];
        for (int i = 0; i < kArrays; ++i) sizes[i] = each[i] * count_;
        uint8_t* a[kArrays];
        if (!made.reserve(sizes, a)) return QW_NO_MEMORY;
        const qw_round_arguments arguments = {&type_, count_, rows_.in, rows_.stored, arrays_[0], rows_.in, a[0], a[1], a[2], a[3], a[4]};
        for (int64_t row = 0; row < count_; row += kPanel) kernels_.round_rows(arguments, row, std::min(kPanel, count_ - row));
        return pack_arrays(codes(a), false);
    }

    int32_t pack_numbers(Buffers& made) {
        const bool is_bf16 = type_.element == QW_BF16;
        const int64_t row = rows_.in * (is_bf16 ? 2 : 4);
        const uint8_t* numbers = arrays_[0];
        if (rows_.stored != type_.element) {
            const int64_t sizes[kArrays] = {row * count_, 0, 0, 0, 0};
            uint8_t* a[kArrays];
            if (!made.reserve(sizes, a)) return QW_NO_MEMORY;
            convert(rows_.stored, arrays_[0], is_bf16, rows_.in * count_, a[0]);
            numbers = a[0];
        }
        const int64_t group = (rows_.first + skipped_) / kGroup;
        pack_group(is_bf16, rows_.out, rows_.in, reinterpret_cast<const char*>(numbers), row, group, static_cast<char*>(rows_.packed));
        return 0;
    }

    const Kernels& kernels_;
    const qw_stored_rows& rows_;
    const qw_weight_type& type_;
    const int64_t skipped_, count_;
    uint8_t* arrays_[kArrays] = {};
};

}  // namespace

}  // namespace qwench

using namespace qwench;

static_assert(QW_LOAD_ROWS == kGroup, "a piece of unquantised rows is a group");

int32_t qw_load(qw_context* context, const qw_stored_rows* rows, int64_t count, qw_load_state* state) {
    std::vector<int64_t> ends(static_cast<size_t>(count));  // pieces of all rows up to here
    int64_t pieces = 0;
    for (int64_t i = 0; i < count; ++i) ends[static_cast<size_t>(i)] = pieces += divide_up(rows[i].rows, QW_LOAD_ROWS);
    std::atomic<int32_t> failed{0};
    const auto work = [&](int64_t) {
        Buffers read, made;
        while (failed.load() == 0 && __atomic_load_n(&state->stop, __ATOMIC_RELAXED) == 0) {
            const int64_t piece = __atomic_fetch_add(&state->next, 1, __ATOMIC_RELAXED);
            if (piece >= pieces) break;
            const int64_t at = std::upper_bound(ends.begin(), ends.end(), piece) - ends.begin();
            const int64_t before = at == 0 ? 0 : ends[static_cast<size_t>(at - 1)];
            int64_t bytes = 0;
            const int32_t status = Piece(*context->kernels, rows[at], piece - before).load(read, made, bytes);
            __atomic_fetch_add(&state->bytes, bytes, __ATOMIC_RELAXED);
            int32_t none = 0;
            if (status != 0 && failed.compare_exchange_strong(none, status)) state->failed = at;
        }
    };
    context->pool.run(context->pool.threads(), work);
    if (state->next > pieces) state->next = pieces;
    return failed.load();
}
