/* Blocks of positions, one after the other, with a running maximum and sum for each query, as
 * flash attention does. Blocks begin at multiples of BLOCK, so that a query's sums are taken in the
 * same order whether it stands alone or among others; what it does not see is added as zero.
 */
#include "attention.h"
#include "vector.h"

#include <string.h>

#define BLOCK 128
#define WANTED_ROWS 48

/* Tiles of ROWS query rows, and how the cache lies for them. */
#ifdef __AVX512BF16__
#include "attention_avx512.h"
#else
#include "attention_avx2.h"
#endif

int attention_most_tokens(int group)
{
    return group >= WANTED_ROWS ? 1 : WANTED_ROWS / group;
}

int64_t attention_scratch(int group, int head_dim)
{
    /* Scores, query and outputs of each row, then its maximum, sum and correction. */
    return (int64_t)attention_most_tokens(group) * group * (BLOCK + 2 * head_dim + 3);
}

INLINE void write_as(enum type type, int64_t dim, const struct head_cache *cache, int64_t position,
                     const float *key, const float *value)
{
    for (int64_t d = 0; d < dim; d++) {
        const int64_t of_key = key_slot(type, dim, position, d);
        const int64_t of_value = value_slot(type, dim, position, d);
        if (type == BFLOAT16) {
            ((uint16_t *)cache->keys)[of_key] = bf16_from_float(key[d]);
            ((uint16_t *)cache->values)[of_value] = bf16_from_float(value[d]);
        } else {
            ((float *)cache->keys)[of_key] = key[d];
            ((float *)cache->values)[of_value] = value[d];
        }
    }
}

void attention_write(const struct attention *attention, const struct head_cache *cache,
                     int64_t position, const float *key, const float *value)
{
    if (attention->type == BFLOAT16)
        write_as(BFLOAT16, attention->head_dim, cache, position, key, value);
    else
        write_as(FLOAT32, attention->head_dim, cache, position, key, value);
}

/* Turn a row's scores of positions block... into weights, 0 where it does not see; `count` is a
 * multiple of GROUP. Returns what the earlier outputs must be multiplied by. */
INLINE float soften(float *scores, int count, int64_t block, int64_t first, int64_t last,
                    float softcap, float *largest, float *sum)
{
    const vec lanes = vec_lanes(), hidden = vec_set(-INFINITY);
    /* Positions are less than 2^24: exact in float32. */
    const vec begin = vec_set((float)(first - block)), end = vec_set((float)(last - block));
    vec most = hidden;
    for (int i = 0; i < count; i += LANES) {
        vec at = vec_add(lanes, vec_set((float)i)), score = vec_load(scores + i);
        if (softcap > 0)
            score = vec_softcap(score, softcap);
        score = vec_choose(vec_within(at, begin, end), score, hidden);
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
    vec total = vec_zero();
    for (int i = 0; i < count; i += LANES) {
        vec score = vec_load(scores + i);
        vec weight = vec_exp(vec_sub(score, vec_set(now)));
        weight = vec_choose(vec_differs(score, hidden), weight, vec_zero());
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
                int64_t output_stride, int64_t first_output, float *scratch)
{
    const int group = attention->group, rows = tokens * group;
    const int64_t dim = attention->head_dim;
    float *scores = scratch, *arranged = scores + (int64_t)rows * BLOCK;
    float *sums_of_values = arranged + rows * dim;
    float *largest = sums_of_values + rows * dim, *sum = largest + rows, *correction = sum + rows;
    const int64_t window = attention->window;
    memset(sums_of_values, 0, (size_t)(rows * dim) * sizeof *sums_of_values);
    for (int row = 0; row < rows; row++) {
        arrange_query(type, arranged + row * dim,
                      queries + row / group * stride + row % group * dim, dim);
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
            BY_ROWS(some, score_rows(type, N, arranged + row * dim, dim, cache->keys, block, count,
                                     scores + row * BLOCK))
        }
        for (int row = 0; row < rows; row++) {
            int64_t own = position + row / group;
            int64_t first = window && own >= window ? own - window + 1 : 0;
            correction[row] = soften(scores + row * BLOCK, count, block, first, own,
                                     attention->softcap, largest + row, sum + row);
            arrange_weights(type, scores + row * BLOCK, count);
        }
        for (int row = 0; row < rows; row += ROWS) {
            const int some = rows - row < ROWS ? rows - row : ROWS;
            BY_ROWS(some, value_rows(type, N, scores + row * BLOCK, correction + row, dim,
                                     cache->values, block, positions, sums_of_values + row * dim))
        }
    }
    for (int row = 0; row < rows; row++) {
        float *from = sums_of_values + row * dim;
        for (int64_t d = 0; d < dim; d += LANES)
            vec_store(from + d, vec_div(vec_load(from + d), vec_set(sum[row])));
        linear_arrange(type, outputs + row / group * output_stride,
                       first_output + row % group * dim, from, dim);
    }
}

void attention_run(const struct attention *attention, const struct head_cache *cache,
                   int64_t position, int tokens, const float *queries, int64_t stride,
                   float *outputs, int64_t output_stride, int64_t first, float *scratch)
{
    if (attention->type == BFLOAT16)
        run(BFLOAT16, attention, cache, position, tokens, queries, stride, outputs, output_stride,
            first, scratch);
    else
        run(FLOAT32, attention, cache, position, tokens, queries, stride, outputs, output_stride,
            first, scratch);
}
