/* A decoder-only transformer and its cache: forward passes over tokens of some of its rows.
 *
 * `engine/decoder.py` says what each part means and `engine/native.py` mirrors these structures.
 * Does not know how a token is chosen.
 */
#ifndef DECODER_H
#define DECODER_H

#include "elementwise.h"
#include "linear.h"

/* Changes with whatever a caller has to know. */
#define DECODER_INTERFACE 3

struct rope {
    const float *frequencies;
    int64_t pairs;
    float scale;
};

/* Norms and biases are float32; NULL for none. Matrices that meet the same activations are apart,
 * as in most checkpoints; where they are one there, each is some rows of it. */
struct layer {
    const float *attention_norm;
    struct matrix qkv[3]; /* queries, keys, values */
    const float *qkv_bias, *query_norm, *key_norm;
    struct matrix output;
    const float *output_bias, *attention_post_norm, *mlp_norm;
    struct matrix gate, up, down;
    const float *mlp_post_norm;
    int64_t window; /* 0 for all positions */
    int64_t rope;   /* which one; -1 for none */
};

struct decoder {
    int64_t type;       /* enum type, of weights and cache */
    int64_t activation; /* enum activation */
    int64_t heads, kv_heads, head_dim;
    int64_t layers_count, ropes_count;
    const struct layer *layers;
    const struct rope *ropes;
    struct matrix embedding, head;
    const float *norm;
    float embedding_scale, norm_eps, attention_scale, residual_scale, logit_scale;
    float attention_softcap, logit_softcap; /* 0 for none */
    /* Zeroed memory of decoder_cache_bytes() a row. */
    void *cache;
    int64_t rows, max_length;
};

/* `tokens` tokens of a row, from a position on. */
struct span {
    int64_t row, position, tokens;
};

struct runner;
struct threads;

/* Callers see what sets.c makes of the sets' functions, which are hidden. */
#ifdef SET
#pragma GCC visibility push(hidden)
#else
#pragma GCC visibility push(default)
#endif

int decoder_interface(void);

/* The set of instructions with which a decoder opened now would run: "avx512", "avx2", or NULL
 * where the processor has neither, or ATEN_CPU_CAPABILITY is "default". */
const char *decoder_instructions(void);

/* Bytes of one row of the cache. */
int64_t decoder_cache_bytes(const struct decoder *decoder);

/* Make ready for passes of up to `most_tokens` tokens on `threads` threads; NULL without memory, or
 * without a set of instructions. The decoder and all that it points to must stay where they are. */
struct runner *decoder_open(const struct decoder *decoder, int threads, int64_t most_tokens);
void decoder_close(struct runner *runner);

/* Run the spans' tokens, written one span after the other, and keep their keys and values. The
 * logits (spans, vocabulary) are those after each span's last token; NULL if they are not wanted.
 * No two spans may have the same row. 0, or -1 where a number is out of range. */
int decoder_step(struct runner *runner, const struct span *spans, int64_t count,
                 const int64_t *tokens, float *logits);

/* Copy the first `length` positions of a row to another one. */
int decoder_copy(struct runner *runner, int64_t source, int64_t target, int64_t length);

/* The threads that run its parts, for others' parts between two passes. */
struct threads *decoder_threads(struct runner *runner);

#pragma GCC visibility pop

#endif
