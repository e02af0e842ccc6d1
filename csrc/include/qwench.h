/* Qwench's native kernels behind one plain C interface. It knows neither Python nor torch, neither models nor requests.
 *
 * Shapes are written [rows, columns]; the last dimension is contiguous; a stride counts elements from row to row.
 * Every pointer must cover its whole shape: the caller checks named dimensions before it calls (ops/native.py does).
 * Results depend neither on the number of threads nor on how many rows are computed together: work is divided over
 * outputs only, and each output is summed in one fixed order. A context serves one caller at a time.
 */
#ifndef QWENCH_H
#define QWENCH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define QW_API
#else
#define QW_API __attribute__((visibility("default")))
#endif

/* Changes whenever a declaration below changes: a library of another build is refused, not guessed at. */
#define QW_INTERFACE 1

/* Types of elements. */
#define QW_F32 0
#define QW_BF16 1

typedef struct qw_context qw_context;

QW_API int32_t qw_interface(void);

/* The instruction sets this processor can run, best first, separated by one space; out of "amx-bf16 avx512-bf16 avx512
 * avx2 scalar". The first three share everything but the multiplication of BF16. */
QW_API const char* qw_isas(void);

/* A context: an instruction set (a name of qw_isas), a pool of `threads` threads (the caller is one of them), and scratch
 * memory. NULL where `isa` is no such name, or memory or threads cannot be had. */
QW_API qw_context* qw_open(int32_t threads, const char* isa);
QW_API void qw_close(qw_context* context);

/* Zeroed memory on huge pages where the system grants them; NULL where there is not enough. */
QW_API void* qw_memory_map(int64_t num_bytes);
QW_API void qw_memory_unmap(void* memory, int64_t num_bytes);

/* Packed weights: see csrc/packed.h for the layout. `packed` must be aligned to 64 bytes. */
QW_API int64_t qw_packed_bytes(int32_t type, int64_t out, int64_t in);

/* source [out, in] with `source_stride` -> packed, both of `type`. */
QW_API void qw_pack(qw_context* context, int32_t type, int64_t out, int64_t in, const void* source,
                    int64_t source_stride, void* packed);

/* Rows rows[count] of a packed [out, in] -> target [count, in], of the weight's type. 0, or 1 and nothing written where a
 * row is not in [0, out). */
QW_API int32_t qw_unpack_rows(qw_context* context, int32_t type, int64_t out, int64_t in, const void* packed,
                           const int64_t* rows, int64_t count, void* target, int64_t target_stride);

typedef struct {
    int64_t tokens, in, out;
    int32_t weight_type; /* of packed */
    int32_t type;        /* of x and y */
    const void* packed;  /* [out, in], packed */
    const void* x;       /* [tokens, in] */
    int64_t x_stride;
    void* y; /* [tokens, out] */
    int64_t y_stride;
} qw_linear_arguments;

/* y = x . weight^T, summed in fp32. 0, or 1 where there is not enough memory for the inputs' other form. */
QW_API int32_t qw_linear(qw_context* context, const qw_linear_arguments* arguments);

typedef struct {
    int64_t rows, width;
    int32_t type; /* of x, weight and y */
    float epsilon, offset;
    const void* x; /* [rows, width] */
    int64_t x_stride;
    const void* weight; /* [width] */
    void* y;            /* [rows, width] */
    int64_t y_stride;
} qw_norm_arguments;

/* y = x / sqrt(mean(x^2) + epsilon) * (weight + offset), computed in fp32. */
QW_API void qw_rms_norm(qw_context* context, const qw_norm_arguments* arguments);

/* Tokens of `rows` sequences through a Gated DeltaNet mixer: convolution, silu, l2 norms, delta rule, gated norm. T
 * tokens in all; row r's are [starts[r], starts[r + 1]). C = 2 * key_heads * key_dim + value_heads * value_dim channels:
 * all queries, all keys, all values. Value head j reads key head j / (value_heads / key_heads). No two rows share a slot.
 * key_dim and value_dim are at most QW_DELTA_WIDTH. Cutting a sequence into several calls does not change a bit. */
#define QW_DELTA_WIDTH 256
typedef struct {
    int64_t rows, num_slots, key_heads, value_heads, key_dim, value_dim, taps;
    int32_t type; /* of mixed, beta, decay, gate, conv_states and output */
    float epsilon;
    const int64_t* starts;   /* [rows + 1], ascending from 0 to T */
    const int64_t* slots;    /* [rows], each in [0, num_slots) */
    const void* mixed;       /* [T, C] before the convolution */
    const void* beta;        /* [T, value_heads] before its sigmoid */
    const void* decay;       /* [T, value_heads] before its softplus */
    const void* gate;        /* [T, value_heads * value_dim] before its silu */
    const float* conv;       /* [taps, C], the last tap for the current token */
    const float* decay_rate; /* [value_heads] exp(a_log) */
    const float* decay_bias; /* [value_heads] */
    const float* scale;      /* [value_dim] of the gated norm */
    void* conv_states;       /* [num_slots, taps - 1, C], advanced in place */
    float* states;           /* [num_slots, value_heads, key_dim, value_dim], advanced in place */
    void* output;            /* [T, value_heads * value_dim] */
} qw_delta_arguments;

/* 0, or 1 and nothing touched where a slot is out of range. */
QW_API int32_t qw_delta_net(qw_context* context, const qw_delta_arguments* arguments);

/* Attention of one new token of each of `rows` sequences over a paged cache that holds it already. Query head i reads
 * key head i / (query_heads / kv_heads). Position p of row r lies in slot page_table[r][p / page_size] * page_size +
 * p % page_size. head_dim is at most QW_ATTENTION_WIDTH. */
#define QW_ATTENTION_WIDTH 256
typedef struct {
    int64_t rows, query_heads, kv_heads, head_dim, page_size, num_pages;
    int32_t type; /* of query, keys, values and output */
    float scale;
    const void* query;         /* [rows, query_heads, head_dim] */
    const void* keys;          /* [num_pages * page_size, kv_heads, head_dim] */
    const void* values;        /* [num_pages * page_size, kv_heads, head_dim] */
    const int64_t* page_table; /* [rows, page_stride], each that is read in [0, num_pages) */
    int64_t page_stride;
    const int64_t* contexts; /* [rows] positions that are seen, at least 1 */
    void* output;            /* [rows, query_heads, head_dim] */
} qw_attention_arguments;

/* 0; 1 and nothing written where a page or a context is out of range; 2 where there is not enough memory. */
QW_API int32_t qw_attention_step(qw_context* context, const qw_attention_arguments* arguments);

/* What this machine does at most, measured by loops that do nothing else; the caller takes the time. */

/* The arithmetic loops this processor can run, best first for each type, separated by newlines: a type (int8, bf16, fp32)
 * and an instruction set, such as "int8 avx512-vnni". */
QW_API const char* qw_limits(void);

/* The loop `name` on `threads` threads (at most the context's), `rounds` times each: the operations done, a multiplication
 * and an addition counted as two; 0 and nothing done where there is no such loop. */
QW_API int64_t qw_limit_run(qw_context* context, const char* name, int32_t threads, int64_t rounds);

/* Reads all of memory[num_bytes], each of `threads` threads one stretch of it; all its words or-ed, so that it is read. */
QW_API int64_t qw_limit_read(qw_context* context, int32_t threads, const void* memory, int64_t num_bytes);

#ifdef __cplusplus
}
#endif

#endif
