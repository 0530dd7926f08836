/* Blocks of positions, one after the other, with a running maximum and sum for each query, as
 * flash attention does. Blocks begin at multiples of BLOCK, so that a query's sums are taken in the
 * same order whether it stands alone or among others; what it does not see is added as zero.
 */
#include "attention.h"
#include "vector.h"

#include <string.h>

#define BLOCK 128
/* Query rows of one tile: with two vectors each, 12 of the 16 registers. */
#define ROWS 6
#define WANTED_ROWS 48

int attention_most_tokens(int group)
{
    return group >= WANTED_ROWS ? 1 : WANTED_ROWS / group;
}

int64_t attention_scratch(int group, int head_dim)
{
    /* Scores and outputs of each row, then its maximum, sum and correction. */
    return (int64_t)attention_most_tokens(group) * group * (BLOCK + head_dim + 3);
}

INLINE void load_pair(enum type type, const void *from, int64_t offset, vec *low, vec *high)
{
    if (type == BFLOAT16) {
        __m256i pairs = pairs_load((const uint16_t *)from + offset);
        *low = pairs_even(pairs);
        *high = pairs_odd(pairs);
    } else {
        *low = vec_load((const float *)from + offset);
        *high = vec_load((const float *)from + offset + 8);
    }
}

/* Where member i of a group is stored, so that load_pair gives members 0-7 and 8-15. */
INLINE int slot(enum type type, int64_t i)
{
    int member = (int)(i % GROUP);
    return type == BFLOAT16 ? (member % 8) * 2 + member / 8 : member;
}

INLINE void store_one(enum type type, void *to, int64_t offset, float value)
{
    if (type == BFLOAT16)
        ((uint16_t *)to)[offset] = bf16_from_float(value);
    else
        ((float *)to)[offset] = value;
}

void attention_write(const struct attention *attention, const struct head_cache *cache,
                     int64_t position, const float *key, const float *value)
{
    const int64_t dim = attention->head_dim, panel = position / GROUP * GROUP * dim;
    const enum type type = attention->type;
    for (int64_t d = 0; d < dim; d++) {
        store_one(type, cache->keys, panel + d * GROUP + slot(type, position), key[d]);
        store_one(type, cache->values, position * dim + d / GROUP * GROUP + slot(type, d),
                  value[d]);
    }
}

/* Scores of `rows` queries for a group of positions. */
INLINE void score_tile(enum type type, const int rows, const float *const *queries, int64_t dim,
                       const void *keys, int64_t panel, float *scores)
{
    vec acc[ROWS * 2];
#pragma unroll
    for (int i = 0; i < rows * 2; i++)
        acc[i] = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d++) {
        vec low, high;
        load_pair(type, keys, panel + d * GROUP, &low, &high);
#pragma unroll
        for (int r = 0; r < rows; r++) {
            vec q = _mm256_broadcast_ss(queries[r] + d);
            acc[2 * r] = vec_fma(q, low, acc[2 * r]);
            acc[2 * r + 1] = vec_fma(q, high, acc[2 * r + 1]);
        }
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
        vec_store(scores + r * BLOCK, acc[2 * r]);
        vec_store(scores + r * BLOCK + 8, acc[2 * r + 1]);
    }
}

/* outputs = outputs * correction + weights @ values, for a group of dimensions. */
INLINE void value_tile(enum type type, const int rows, const float *weights,
                       const float *corrections, int64_t dim, const void *values, int64_t first,
                       int positions, float *outputs)
{
    vec acc[ROWS * 2];
#pragma unroll
    for (int r = 0; r < rows; r++) {
        vec correction = _mm256_broadcast_ss(corrections + r);
        acc[2 * r] = vec_mul(vec_load(outputs + r * dim), correction);
        acc[2 * r + 1] = vec_mul(vec_load(outputs + r * dim + 8), correction);
    }
    for (int p = 0; p < positions; p++) {
        vec low, high;
        load_pair(type, values, first + p * dim, &low, &high);
#pragma unroll
        for (int r = 0; r < rows; r++) {
            vec w = _mm256_broadcast_ss(weights + r * BLOCK + p);
            acc[2 * r] = vec_fma(w, low, acc[2 * r]);
            acc[2 * r + 1] = vec_fma(w, high, acc[2 * r + 1]);
        }
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
        vec_store(outputs + r * dim, acc[2 * r]);
        vec_store(outputs + r * dim + 8, acc[2 * r + 1]);
    }
}

/* Turn a row's scores of positions block... into weights, 0 where it does not see; `count` is a
 * multiple of GROUP. Returns what the earlier outputs must be multiplied by. */
INLINE float soften(float *scores, int count, int64_t block, int64_t first, int64_t last,
                    float softcap, float *largest, float *sum)
{
    const vec lanes = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    /* Positions are less than 2^24: exact in float32. */
    const vec begin = vec_set((float)(first - block)), end = vec_set((float)(last - block));
    vec most = vec_set(-INFINITY);
    for (int i = 0; i < count; i += 8) {
        vec at = vec_add(lanes, vec_set((float)i)), score = vec_load(scores + i);
        if (softcap > 0)
            score = vec_softcap(score, softcap);
        vec seen = _mm256_and_ps(_mm256_cmp_ps(at, begin, _CMP_GE_OQ),
                                 _mm256_cmp_ps(at, end, _CMP_LE_OQ));
        score = _mm256_blendv_ps(vec_set(-INFINITY), score, seen);
        vec_store(scores + i, score);
        most = vec_max(score, most);
    }
    float before = *largest, now = vec_largest(most);
    if (!(now > before))
        now = before;
    if (now == -INFINITY) {
        memset(scores, 0, (size_t)count * sizeof *scores);
        return 1;
    }
    vec total = _mm256_setzero_ps();
    for (int i = 0; i < count; i += 8) {
        vec score = vec_load(scores + i);
        vec hidden = _mm256_cmp_ps(score, vec_set(-INFINITY), _CMP_EQ_OQ);
        vec weight = _mm256_andnot_ps(hidden, vec_exp(vec_sub(score, vec_set(now))));
        vec_store(scores + i, weight);
        total = vec_add(total, weight);
    }
    float correction = before == -INFINITY ? 0 : expf(before - now);
    *largest = now;
    *sum = *sum * correction + vec_sum(total);
    return correction;
}

#define BY_ROWS(rows, call)                                                                        \
    switch (rows) {                                                                                \
    case 1: { enum { N = 1 }; call; } break;                                                       \
    case 2: { enum { N = 2 }; call; } break;                                                       \
    case 3: { enum { N = 3 }; call; } break;                                                       \
    case 4: { enum { N = 4 }; call; } break;                                                       \
    case 5: { enum { N = 5 }; call; } break;                                                       \
    default: { enum { N = 6 }; call; } break;                                                      \
    }

INLINE void run(enum type type, const struct attention *attention, const struct head_cache *cache,
                int64_t position, int tokens, const float *queries, int64_t stride, float *outputs,
                int64_t output_stride, float *scratch)
{
    const int group = attention->group, rows = tokens * group;
    const int64_t dim = attention->head_dim;
    float *scores = scratch, *sums_of_values = scores + (int64_t)rows * BLOCK;
    float *largest = sums_of_values + rows * dim, *sum = largest + rows, *correction = sum + rows;
    const int64_t window = attention->window;
    memset(sums_of_values, 0, (size_t)(rows * dim) * sizeof *sums_of_values);
    for (int row = 0; row < rows; row++) {
        largest[row] = -INFINITY;
        sum[row] = 0;
    }
    int64_t start = window && position >= window ? position - window + 1 : 0;
    for (int64_t block = start / BLOCK * BLOCK; block < position + tokens; block += BLOCK) {
        int64_t left = position + tokens - block;
        const int positions = (int)(left < BLOCK ? left : BLOCK);
        const int count = (positions + GROUP - 1) / GROUP * GROUP;
        for (int row = 0; row < rows; row += ROWS) {
            const int some = rows - row < ROWS ? rows - row : ROWS;
            const float *q[ROWS];
            for (int r = 0; r < some; r++)
                q[r] = queries + (row + r) / group * stride + (row + r) % group * dim;
            for (int at = 0; at < count; at += GROUP)
                BY_ROWS(some, score_tile(type, N, q, dim, cache->keys, (block + at) * dim,
                                         scores + row * BLOCK + at))
        }
        for (int row = 0; row < rows; row++) {
            int64_t own = position + row / group;
            int64_t first = window && own >= window ? own - window + 1 : 0;
            correction[row] = soften(scores + row * BLOCK, count, block, first, own,
                                     attention->softcap, largest + row, sum + row);
        }
        for (int row = 0; row < rows; row += ROWS) {
            const int some = rows - row < ROWS ? rows - row : ROWS;
            for (int64_t d = 0; d < dim; d += GROUP)
                BY_ROWS(some, value_tile(type, N, scores + row * BLOCK, correction + row, dim,
                                         cache->values, block * dim + d, positions,
                                         sums_of_values + row * dim + d))
        }
    }
    for (int row = 0; row < rows; row++) {
        float *to = outputs + row / group * output_stride + row % group * dim;
        for (int64_t d = 0; d < dim; d += 8)
            vec_store(to + d, vec_div(vec_load(sums_of_values + row * dim + d),
                                      vec_set(sum[row])));
        linear_arrange(type, to, to, dim);
    }
}

void attention_run(const struct attention *attention, const struct head_cache *cache,
                   int64_t position, int tokens, const float *queries, int64_t stride,
                   float *outputs, int64_t output_stride, float *scratch)
{
    if (attention->type == BFLOAT16)
        run(BFLOAT16, attention, cache, position, tokens, queries, stride, outputs, output_stride,
            scratch);
    else
        run(FLOAT32, attention, cache, position, tokens, queries, stride, outputs, output_stride,
            scratch);
}
