/* Attention of one group of query heads over the keys and values of its cache.
 *
 * Knows heads, positions and the cache's layout. Does not know threads, layers or models.
 */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "linear.h"

/* Positions come in groups of GROUP. The keys of a group lie with the dimension first, so that scores
 * of neighbouring positions are one vector; how numbers lie within that is the set's own affair. */
struct head_cache {
    void *keys, *values;
};

struct attention {
    enum type type;      /* of the cache */
    int group;           /* query heads that share keys and values */
    int head_dim;        /* a multiple of GROUP */
    int window;          /* positions seen, the token's own among them; 0 for all */
    float softcap;       /* of scores; 0 for none */
};

/* Query rows (tokens * group) that one call may have. */
int attention_most_tokens(int group);

/* float32 numbers of scratch that a call needs. */
int64_t attention_scratch(int group, int head_dim);

/* Write a key and a value, each of head_dim, at a position. */
void attention_write(const struct attention *attention, const struct head_cache *cache,
                     int64_t position, const float *key, const float *value);

/* Attention of `tokens` tokens at `position`..., whose keys are in the cache.
 *
 * Token t's queries, already scaled, are the heads from queries + t * stride; its output goes, as
 * linear_arrange does it, into the row outputs + t * output_stride from number `first` on. What a
 * token gets does not depend on the tokens beside it. */
void attention_run(const struct attention *attention, const struct head_cache *cache,
                   int64_t position, int tokens, const float *queries, int64_t stride,
                   float *outputs, int64_t output_stride, int64_t first, float *scratch);

#endif
