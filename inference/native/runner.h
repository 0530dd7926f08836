/* What a pass works on, and the parts of its jobs.
 *
 * Between decoder.c, which says what comes after what, and parts.c, which says what each is.
 */
#ifndef RUNNER_H
#define RUNNER_H

#include "decoder.h"
#include "threads.h"
#include "vector.h"

/* Outs and tokens of one part of a product: enough to be worth a claim, little to wait for. */
#define OUTS_A_PART 48
#define TOKENS_A_PART 64
#define TOKENS_A_NORM 8

/* Tokens of one span that attend together. */
struct unit {
    int64_t row, position, first; /* `first` is the index of its first token */
    int tokens;
    int64_t head;                 /* of keys and values */
};

struct runner {
    const struct decoder *decoder;
    struct threads *threads;
    int64_t most_tokens, hidden, intermediate, qkv, attended, scratch_size;
    float *x, *normed, *projected, *attention, *mlp, *added, *cosines, *sines, *scratch;
    struct unit *units;
    /* Of the pass. */
    const struct span *spans;
    int64_t spans_count, tokens, units_count;
    /* Of the job. */
    const struct layer *layer;
    int64_t layer_index;
    const float *post_norm, *norm;
    float *logits;
    int64_t copy_source, copy_target, copy_length;
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t parts_of(int64_t count, int64_t part) { return (count + part - 1) / part; }

static inline int64_t type_bytes(const struct decoder *decoder)
{
    return decoder->type == BFLOAT16 ? 2 : 4;
}

/* Numbers of one head's keys, or values, in one row of one layer. */
static inline int64_t head_numbers(const struct decoder *decoder)
{
    return (decoder->max_length + GROUP - 1) / GROUP * GROUP * decoder->head_dim;
}

/* Parts of a product. */
static inline int blocks_of(int64_t outs, int64_t tokens)
{
    return (int)(parts_of(outs, OUTS_A_PART) * parts_of(tokens, TOKENS_A_PART));
}

/* Each is a `job_part` of which the context is a struct runner. */
void qkv_part(void *context, int part, int thread);
void prepare_part(void *context, int part, int thread);
void attention_part(void *context, int part, int thread);
void output_part(void *context, int part, int thread);
void gate_up_part(void *context, int part, int thread);
void down_part(void *context, int part, int thread);
void norm_part(void *context, int part, int thread);
void head_part(void *context, int part, int thread);
void copy_part(void *context, int part, int thread);

#endif
