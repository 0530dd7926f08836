/* Scores and sums of values on AVX2, and how the cache lies for them. A part of attention.c.
 *
 * A bfloat16 group of 16 is read as its even and its odd members, so they lie in turns: members 0
 * and 8, 1 and 9 ... Keys: (group of positions, head_dim, member). Values: (position, head_dim).
 */

/* Query rows of one tile: with two vectors each, 12 of the 16 registers. */
#define ROWS 6

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

INLINE int64_t key_slot(enum type type, int64_t dim, int64_t position, int64_t d)
{
    return position / GROUP * GROUP * dim + d * GROUP + slot(type, position);
}

INLINE int64_t value_slot(enum type type, int64_t dim, int64_t position, int64_t d)
{
    return position * dim + d / GROUP * GROUP + slot(type, d);
}

/* A query, and a row's weights, are read as they are. */
INLINE void arrange_query(enum type type, float *to, const float *from, int64_t dim)
{
    (void)type;
    memcpy(to, from, (size_t)dim * sizeof *to);
}

INLINE void arrange_weights(enum type type, float *weights, int64_t count)
{
    (void)type;
    (void)weights;
    (void)count;
}

/* Scores of `rows` queries for a group of positions. */
INLINE void score_tile(enum type type, const int rows, const float *queries, int64_t dim,
                       const void *keys, int64_t panel, float *scores)
{
    vec acc[ROWS * 2];
#pragma unroll
    for (int i = 0; i < rows * 2; i++)
        acc[i] = vec_zero();
    for (int64_t d = 0; d < dim; d++) {
        vec low, high;
        load_pair(type, keys, panel + d * GROUP, &low, &high);
#pragma unroll
        for (int r = 0; r < rows; r++) {
            vec q = _mm256_broadcast_ss(queries + r * dim + d);
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

/* Scores of `rows` queries for the first `count` positions of a block. */
INLINE void score_rows(enum type type, const int rows, const float *queries, int64_t dim,
                       const void *keys, int64_t block, int count, float *scores)
{
    for (int at = 0; at < count; at += GROUP)
        score_tile(type, rows, queries, dim, keys, (block + at) * dim, scores + at);
}

/* outputs = outputs * correction + weights @ values of the first `positions` of a block. */
INLINE void value_rows(enum type type, const int rows, const float *weights,
                       const float *corrections, int64_t dim, const void *values, int64_t block,
                       int positions, float *outputs)
{
    for (int64_t d = 0; d < dim; d += GROUP)
        value_tile(type, rows, weights, corrections, dim, values, block * dim + d, positions,
                   outputs + d);
}
