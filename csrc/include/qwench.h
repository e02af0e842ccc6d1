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
#define QW_INTERFACE 9

/* Types of elements. */
#define QW_F32 0
#define QW_BF16 1
#define QW_F16 2

typedef struct qw_context qw_context;

QW_API int32_t qw_interface(void);

/* The instruction sets this processor can run, best first, separated by one space; out of "amx-bf16 avx512-bf16
 * avx512-vnni avx512 avx2 scalar". The first four share everything but the multiplication of BF16 and of bytes. */
QW_API const char* qw_isas(void);

/* A context: an instruction set (a name of qw_isas), a pool of `threads` threads (the caller is one of them), and scratch
 * memory. NULL where `isa` is no such name, or memory or threads cannot be had. */
QW_API qw_context* qw_open(int32_t threads, const char* isa);
QW_API void qw_close(qw_context* context);

/* Zeroed memory on huge pages where the system grants them; NULL where there is not enough. */
QW_API void* qw_memory_map(int64_t num_bytes);
QW_API void qw_memory_unmap(void* memory, int64_t num_bytes);

/* What a weight matrix is made of. With `element` QW_F32 or QW_BF16 nothing below it counts. With QW_CODES an element is
 * a code of `bits` bits that stands for scale * value - min (no min without has_min): value is table[code] with
 * has_table, else code - zero. `block` codes of the depth share a scale (and a min), stored as `scale_type`; nested, a
 * super-block of QW_SUPER_BLOCK has a scale (and a min) of that type, and a block a whole number to multiply it by. */
#define QW_CODES 3
#define QW_SUPER_BLOCK 256
typedef struct {
    int32_t element;    /* QW_F32, QW_BF16 or QW_CODES */
    int32_t bits;       /* 2, 3, 4, 5, 6 or 8; 4 with has_table */
    int32_t block;      /* 16 or 32 */
    int32_t zero;       /* in [0, 128] */
    int32_t scale_type; /* QW_F16 or QW_BF16 */
    int32_t nested, has_min, has_table;
    int8_t table[16];
} qw_weight_type;

/* A packed matrix [out, in]: see csrc/packed.h for the layout. `packed` must be aligned to 64 bytes. */
typedef struct {
    const qw_weight_type* type;
    const void* packed;
    int64_t out, in;
} qw_weight;

/* A matrix of nested codes of 5 or 6 bits with so many outputs is a vocabulary. Where only the few largest outputs of a
 * single token count, these are looked for by the codes' QW_UPPER_BITS upper bits, a third less to read: the
 * QW_EXACT_PANELS panels (QW_PANEL outputs side by side) that look largest are computed from all bits, and from how far
 * these had been off it follows which others may hold one of the largest: those too. The rest stay as they look. */
#define QW_VOCABULARY 65536
#define QW_UPPER_BITS 3
#define QW_PANEL 16
#define QW_EXACT_PANELS 256

/* Bytes of a packed [out, in]; -1 for a type that is not as described above. */
QW_API int64_t qw_packed_bytes(const qw_weight_type* type, int64_t out, int64_t in);

/* source [out, in] with `source_stride`, fp32 or BF16 (`element`) -> packed. */
QW_API void qw_pack(qw_context* context, int32_t element, int64_t out, int64_t in, const void* source,
                    int64_t source_stride, void* packed);

/* A quantised [out, in], one byte a code. D is `in` rounded up to 32, nested to QW_SUPER_BLOCK. What the type does not
 * have is NULL. Every scale and min is multiplied by `factor` on top. */
typedef struct {
    const qw_weight_type* type;
    int64_t out, in;
    const uint8_t* codes;     /* [out, D] */
    const void* scales;       /* [out, D / block] of scale_type, or int8_t where nested */
    const void* mins;         /* [out, D / block] of scale_type, or uint8_t where nested */
    const void* super_scales; /* [out, D / QW_SUPER_BLOCK] of scale_type */
    const void* super_mins;   /* [out, D / QW_SUPER_BLOCK] of scale_type */
    float factor;
} qw_codes;

/* To rows [first, first + codes->out) of the packed [out, codes->in] of the same type; first is a multiple of
 * QW_LOAD_ROWS. 0, or 1 and nothing written for a type that is not as described above. */
QW_API int32_t qw_pack_codes(qw_context* context, const qw_codes* codes, void* packed, int64_t out, int64_t first);

typedef struct {
    const qw_weight_type* type; /* one of our own: ops/weight_types.py */
    int64_t out, in;
    int32_t element;    /* of source: QW_F32, QW_BF16 or QW_F16 */
    const void* source; /* [out, in] */
    int64_t source_stride;
    void* codes; /* these five as in qw_codes, NULL for what the type does not have */
    void* scales;
    void* mins;
    void* super_scales;
    void* super_mins;
} qw_round_arguments;

/* Numbers rounded to codes, as weights/quantise.py says it, to the bit. 0, or 1 and nothing written for another type. */
QW_API int32_t qw_round(qw_context* context, const qw_round_arguments* arguments);

/* How rows of weights lie in a file: numbers (QW_F32, QW_BF16, QW_F16), which become elements or are rounded to codes;
 * QW_BITS, the arrays of qw_codes with the codes of a row as one string of bits, the lowest first, and with has_table
 * scales that are a byte e for 2^(e - 128); or QW_GGUF plus GGUF's own number of a type of blocks. */
#define QW_BITS 8
#define QW_GGUF 16
typedef struct {
    const qw_weight_type* type; /* what they become */
    void* packed;               /* the matrix [out, in] they are rows of */
    int64_t out, in;
    int64_t first, rows; /* [first, first + rows) of it; first is a multiple of QW_LOAD_ROWS */
    int32_t stored;
    int32_t file;       /* a descriptor */
    int64_t offsets[5]; /* where in the file these rows begin: numbers, blocks or codes, scales, mins, super_scales, super_mins */
} qw_stored_rows;
#define QW_LOAD_ROWS 64

/* A load as it goes on, which any thread may look at, and stop. Zeroed before the first call. */
typedef struct {
    int64_t stop;   /* not 0: no more rows are begun */
    int64_t next;   /* how many pieces were begun, and, once the call has returned, are done */
    int64_t bytes;  /* read so far */
    int64_t failed; /* which of the rows could not be loaded */
} qw_load_state;

/* Reads and packs from where `state` stands. 0: all is done, or was stopped and may go on with any context. Else why
 * `failed` could not be loaded: QW_NO_MEMORY, QW_SHORT, QW_NOT_FINITE, QW_UNKNOWN or an errno, negative. */
#define QW_SHORT 3      /* the file ended */
#define QW_NOT_FINITE 4 /* a scale or a min that is no finite number, of QW_BITS or of rounded numbers */
#define QW_UNKNOWN 5    /* such rows cannot become this type */
QW_API int32_t qw_load(qw_context* context, const qw_stored_rows* rows, int64_t count, qw_load_state* state);

typedef struct {
    const qw_weight* weight;
    int64_t count;
    const int64_t* rows; /* [count] */
    int32_t type;        /* of target: QW_F32 or QW_BF16 */
    void* target;        /* [count, in] */
    int64_t target_stride;
} qw_unpack_arguments;

/* Rows of a packed matrix in `type`, rounded once. 0, or 1 and nothing written where a row is not in [0, out). */
QW_API int32_t qw_unpack_rows(qw_context* context, const qw_unpack_arguments* arguments);

typedef struct {
    const qw_weight* weight; /* [out, in] */
    int64_t tokens;
    int32_t type;        /* of x, residual and y: QW_F32 or QW_BF16 */
    const void* x;       /* [tokens, in]; with `rows` as many rows as these reach */
    const int64_t* rows; /* [tokens] rows of x, in any order and any number of times; NULL for 0, 1, 2 ... */
    int64_t x_stride;
    const void* residual; /* [tokens, out], may be y itself; NULL for none, which it is where few count */
    int64_t residual_stride;
    void* y; /* [tokens, out] */
    int64_t y_stride;
    const float* few; /* [2] of a vocabulary and one token: how many of the largest outputs count, 1 to QW_EXACT_PANELS, and
                       * how much lower than these others may be that count too; NULL, or another number: all count */
} qw_linear_arguments;

/* y = x . weight^T, summed in fp32 and rounded to `type`; with a residual y = residual + that, rounded again. For codes
 * the inputs are first rounded to 8 bits, a scale for every 32, and the result is the same to the bit on every
 * instruction set. 0, or 1 and nothing written where there is not enough memory for the inputs' other form. */
QW_API int32_t qw_linear(qw_context* context, const qw_linear_arguments* arguments);

/* `count` layers that do not read one another's results, shared out to the threads as one job; each gets the bits it
 * gets alone. Neighbours in the list that have the same tokens, type, x, rows, x_stride and weight's `in` share one
 * conversion of their inputs. */
QW_API int32_t qw_linear_many(qw_context* context, const qw_linear_arguments* arguments, int64_t count);

typedef struct {
    int64_t rows, width;
    int32_t type; /* of x, weight and y */
    float epsilon, offset;
    const void* x; /* [rows, width] */
    int64_t x_stride;
    const void* weight; /* [width] */
    void* y;            /* [rows, width] */
    int64_t y_stride;
    const void* bias; /* [width], NULL for none */
} qw_norm_arguments;

/* y = x / sqrt(mean(x^2) + epsilon) * (weight + offset), computed in fp32. With a bias it is a layer norm: the mean of x is
 * subtracted from it first, and the bias added at the end. */
QW_API void qw_rms_norm(qw_context* context, const qw_norm_arguments* arguments);

/* Tokens of `rows` sequences through a Gated DeltaNet mixer: convolution, silu, l2 norms, delta rule, gated norm. T
 * tokens in all; row r's are [starts[r], starts[r + 1]). C = 2 * key_heads * key_dim + value_heads * value_dim channels:
 * all queries, all keys, all values. Value head j reads key head j / (value_heads / key_heads), or j % key_heads where
 * `tiled`. No two rows share a slot. key_dim and value_dim are at most QW_DELTA_WIDTH. Cutting a sequence into several
 * calls does not change a bit. Both states behind token save_tokens[i] are also written to slot save_slots[i], which is
 * no row's. */
#define QW_DELTA_WIDTH 256
typedef struct {
    int64_t rows, num_slots, key_heads, value_heads, key_dim, value_dim, taps, tiled, saves;
    int32_t type; /* of mixed, beta, decay, gate, conv_states and output */
    float epsilon;
    const int64_t* starts;   /* [rows + 1], ascending from 0 to T */
    const int64_t* slots;    /* [rows], each in [0, num_slots) */
    const int64_t* save_tokens; /* [saves], each in [0, T) and greater than the one before */
    const int64_t* save_slots;  /* [saves], each in [0, num_slots) */
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

/* 0, or 1 and nothing touched where a slot or a token is out of range. */
QW_API int32_t qw_delta_net(qw_context* context, const qw_delta_arguments* arguments);

/* Causal attention of a step's T tokens over a paged cache, prompt chunks and single tokens mixed. First the step's keys
 * and values are stored at `kv_slots`; then each token sees its row's positions up to its own. Row r's tokens are
 * [starts[r], starts[r + 1]), at least one, the last of its contexts[r] positions. Query head i reads key head i /
 * (query_heads / kv_heads). Position p of row r lies in slot page_table[r][p / page_size] * page_size + p % page_size;
 * `kv_slots` say the same for the new positions. A token's heads lie side by side, so strides count from token to token.
 * head_dim is at most QW_ATTENTION_WIDTH. Cutting a row into several calls does not change a bit.
 *
 * The cache belongs to the kernels: a page is page_size / QW_CACHE_TILE tiles one after the other, and inside a tile the
 * order is theirs (csrc/packed.h). Pages may be copied whole. `coded`, keys and values are kept in 8 bits: each head of a
 * token as whole numbers in [-127, 127] and an fp32 scale, its largest magnitude / 127. */
#define QW_ATTENTION_WIDTH 256
#define QW_CACHE_TILE 64
typedef struct {
    int64_t rows, query_heads, kv_heads, head_dim;
    int64_t page_size; /* a multiple of QW_CACHE_TILE */
    int64_t num_pages;
    int32_t type;  /* of query, key, value and output, and of keys and values unless they are coded */
    int32_t coded; /* 0 or 1 */
    float scale;
    const int64_t* starts;     /* [rows + 1], ascending from 0 to T */
    const int64_t* contexts;   /* [rows] positions of the cache after this step */
    const int64_t* page_table; /* [rows, page_stride], each that is read in [0, num_pages) */
    int64_t page_stride;
    const int64_t* kv_slots; /* [T], each in [0, num_pages * page_size) */
    const void* query;       /* [T, query_heads, head_dim] */
    int64_t query_stride;
    const void* key; /* [T, kv_heads, head_dim] */
    int64_t key_stride;
    const void* value; /* [T, kv_heads, head_dim] */
    int64_t value_stride;
    void* keys;   /* [num_pages * page_size / QW_CACHE_TILE, kv_heads] tiles, each of QW_CACHE_TILE * head_dim (rounded */
    void* values; /* up to 32) elements, or as many codes and QW_CACHE_TILE scales */
    void* output; /* [T, query_heads, head_dim] */
    int64_t output_stride;
} qw_attention_arguments;

/* 0; 1 and nothing written where a page, a slot or a context is out of range; 2 where there is not enough memory. */
QW_API int32_t qw_attention(qw_context* context, const qw_attention_arguments* arguments);

/* Attention inside frames, all of whose tokens see one another and no others. Frame f has tokens [starts[f],
 * starts[f + 1]), at least one; each has its heads side by side. */
typedef struct {
    int64_t frames, heads;
    int64_t head_dim; /* even, at most QW_ATTENTION_WIDTH */
    int32_t type; /* of query, key, value and output */
    float scale;
    const int64_t* starts; /* [frames + 1], ascending from 0 to T */
    const float* cosine;   /* [T, head_dim / 2]: heads of query and key are turned first, as by QW_ROTATION */
    const float* sine;     /* the same */
    const void* query;     /* [T, heads, head_dim] */
    const void* key;       /* the same */
    const void* value;     /* the same */
    int64_t stride;        /* from token to token, of all three */
    void* output;          /* [T, heads, head_dim], none of the others */
    int64_t output_stride;
} qw_frames_arguments;

/* 0, or 2 where there is not enough memory. */
QW_API int32_t qw_frames(qw_context* context, const qw_frames_arguments* arguments);

/* A layer of a vision tower: a layer norm of x, then what qw_linear gives, plus a bias, then gelu (by its tanh), then added
 * to `residual`; each is rounded to `type` before the next. */
typedef struct {
    const qw_weight* weight; /* [out, in] */
    int64_t tokens;
    int32_t type;     /* of x, norm, bias, residual and y: QW_F32 or QW_BF16 */
    int32_t gelu;     /* not 0: this is done */
    float epsilon;    /* of the norm */
    const void* x;    /* [tokens, in] */
    int64_t x_stride;
    const void* norm; /* [in], what the norm multiplies by; NULL for no norm */
    const void* norm_bias; /* [in], what it adds then */
    const void* bias; /* [out] */
    const void* residual; /* [tokens, out], may be y itself; NULL for none */
    int64_t residual_stride;
    void* y; /* [tokens, out], nothing of x */
    int64_t y_stride;
} qw_layer_arguments;

/* 0, or 1 and nothing written where there is not enough memory. */
QW_API int32_t qw_layer(qw_context* context, const qw_layer_arguments* arguments);

/* A layer of experts. The router's logits become probabilities (softmax over all experts, fp32); each token takes the
 * `chosen` most probable (among equals the lower number), their probabilities divided by their sum where `normalise`.
 * y = sum over them, in ascending order of experts and in fp32, of probability * down(silu(gate x) * up x). What the
 * reference rounds to the activations' type is rounded here: gate and up, silu, their product, down's outputs, y. */
typedef struct {
    int64_t tokens, hidden, width, experts, chosen;
    int32_t normalise;
    int32_t type;         /* of x, logits and y */
    const qw_weight* gate_up; /* [experts] each [2 * width, hidden], the rows of the gate first */
    const qw_weight* down;    /* [experts] each [hidden, width] */
    const void* x;            /* [tokens, hidden] */
    int64_t x_stride;
    const void* logits; /* [tokens, experts] */
    int64_t logits_stride;
    void* y; /* [tokens, hidden] */
    int64_t y_stride;
} qw_experts_arguments;

/* 0, or 1 where there is not enough memory. */
QW_API int32_t qw_experts(qw_context* context, const qw_experts_arguments* arguments);

/* Of each row of logits [rows, columns] the place of its largest number, the first of equals: places [rows]. -1 for a row
 * with a number that is not finite. */
QW_API void qw_largest(qw_context* context, int64_t rows, int64_t columns, const float* logits, int64_t stride,
                       int64_t* places);

/* The `count` largest of logits [columns], which hold no NaN, in descending order, among equals the lower place first:
 * values and places [count]. count is in [1, columns]. 0, or 1 where there is not enough memory. */
QW_API int32_t qw_top(qw_context* context, int64_t columns, const float* logits, int64_t count, float* values,
                      int64_t* places);

/* Draws a place of logits [columns] by the weights e^((logit - maximum) / temperature), those below `floor` being none:
 * the first place at which the sum of weights so far exceeds point * total. */
typedef struct {
    int64_t columns;
    const float* logits; /* no NaN, none above maximum */
    double maximum, temperature, floor, point;
    double total;  /* found: the sum of the weights */
    int64_t place; /* found */
} qw_draw_arguments;

/* 0, or 1 where there is not enough memory. */
QW_API int32_t qw_draw(qw_context* context, qw_draw_arguments* arguments);

/* A program: the operations of a forward pass in a row, laid down once and run for every step. Each instruction has its
 * operation's arguments, in which blanks are left for what differs from step to step; a run fills in the blanks and carries
 * out one instruction after the other.
 *
 * A step is a list of numbers. The first ones are named here; what else it holds only the writer of the program knows. */
#define QW_ZERO 0          /* always 0 */
#define QW_TOKENS 1        /* T */
#define QW_LOGITS 2        /* L, rows of logits */
#define QW_TOKEN_SCRATCH 3 /* address of T * token_bytes, written by qw_run */
#define QW_LOGIT_SCRATCH 4 /* address of L * logit_bytes, written by qw_run */

/* *field = step[base] + step[count] * factor + offset: how many rows there are, where an input lies, or where in the
 * scratch memory a buffer of T or L rows begins. `field` is an integer or a pointer inside some arguments. */
typedef struct {
    void* field;
    int32_t base, count;
    int64_t factor, offset;
} qw_blank;

typedef struct {
    int32_t operation; /* one of those below */
    int32_t count;     /* of arguments: 1 but for QW_LINEAR */
    void* arguments;   /* [count] its structures */
} qw_instruction;

typedef struct {
    const qw_instruction* instructions;
    int64_t num_instructions;
    const qw_blank* blanks;
    int64_t num_blanks, token_bytes, logit_bytes; /* multiples of 64 */
} qw_program;

#define QW_LINEAR 0      /* qw_linear_arguments, `count` of them as for qw_linear_many */
#define QW_RMS_NORM 1    /* qw_norm_arguments */
#define QW_DELTA_NET 2   /* qw_delta_arguments */
#define QW_ATTENTION 3   /* qw_attention_arguments */
#define QW_EXPERTS 4     /* qw_experts_arguments */
#define QW_UNPACK_ROWS 5 /* qw_unpack_arguments */
#define QW_POINTWISE 6   /* qw_pointwise_arguments */
#define QW_ROTATION 7    /* qw_rotation_arguments */
#define QW_TAKE_ROWS 8   /* qw_take_arguments */
#define QW_WIDEN 9       /* qw_widen_arguments */
#define QW_LAYER 10      /* qw_layer_arguments */
#define QW_FRAMES 11     /* qw_frames_arguments */

/* output = x and y combined, number by number; what goes into a product is rounded to `type` first. y has one column
 * for all of x's where y_width is 1. output may be x or y. */
#define QW_ADD 0              /* x + y */
#define QW_SILU_MULTIPLY 1    /* silu(x) * y */
#define QW_SIGMOID_MULTIPLY 2 /* x * sigmoid(y) */
#define QW_GELU 3             /* gelu(x) by its tanh; y is not read */
typedef struct {
    int64_t rows, width, y_width;
    int32_t kind; /* one of those above */
    int32_t type; /* of x, y and output */
    const void* x;
    int64_t x_stride;
    const void* y;
    int64_t y_stride;
    void* output;
    int64_t output_stride;
} qw_pointwise_arguments;

/* Each head's first 2 * half numbers turned, computed in fp32: number j is paired with j + half. output may be x. */
typedef struct {
    int64_t tokens, heads, head_dim, half;
    int32_t type; /* of x and output */
    const void* x; /* [tokens, heads * head_dim] */
    int64_t x_stride;
    const float* cosine; /* [tokens, half] */
    const float* sine;   /* [tokens, half] */
    void* output;
    int64_t output_stride;
} qw_rotation_arguments;

/* y = rows `ids` of x. */
typedef struct {
    int64_t count, rows, width;
    int32_t type;       /* of x and y */
    const int64_t* ids; /* [count], each in [0, rows) */
    const void* x;      /* [rows, width] */
    int64_t x_stride;
    void* y; /* [count, width] */
    int64_t y_stride;
} qw_take_arguments;

/* Rows of BF16 in the second halves of rows of fp32, made fp32 where they are. */
typedef struct {
    int64_t rows, width;
    float* y; /* [rows, width] */
} qw_widen_arguments;

/* What stopped a run. */
#define QW_OUT_OF_RANGE 1 /* an index of the step names no such row, page or slot */
#define QW_NO_MEMORY 2

/* Runs `program`, whose blanks are overwritten, for one step. 0; or QW_OUT_OF_RANGE or QW_NO_MEMORY, the instruction that
 * could not be carried out (-1: none was) in `failed`, and those before it done. */
QW_API int32_t qw_run(qw_context* context, const qw_program* program, int64_t* step, int64_t* failed);

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
