/* Scores and sums of values on AVX-512, and how the cache lies for them. A part of attention.c.
 *
 * What is summed over lies in pairs where it is bfloat16, as its products want it. Keys: (group of
 * positions, pair of dimensions, position, member). Values: (pair of positions, head_dim, member).
 * In float32 there are no pairs, and all else is the same. Queries and weights become bfloat16 too.
 */

/* Query rows and lines of keys or values of one tile: 24 of the 32 registers are sums. */
#define ROWS 6
#define LINES 4

INLINE int64_t key_slot(enum type type, int64_t dim, int64_t position, int64_t d)
{
    const int64_t panel = position / GROUP * GROUP * dim, member = position % GROUP;
    return type == BFLOAT16 ? panel + d / 2 * 2 * GROUP + member * 2 + d % 2
                            : panel + d * GROUP + member;
}

INLINE int64_t value_slot(enum type type, int64_t dim, int64_t position, int64_t d)
{
    return type == BFLOAT16 ? position / 2 * 2 * dim + d * 2 + position % 2 : position * dim + d;
}

INLINE void arrange_query(enum type type, float *to, const float *from, int64_t dim)
{
    linear_arrange(type, to, 0, from, dim);
}

INLINE void arrange_weights(enum type type, float *weights, int64_t count)
{
    linear_arrange(type, weights, 0, weights, count);
}

INLINE vec dot(enum type type, vec sum, line a, line b)
{
    return type == BFLOAT16 ? bf16_dot(sum, a, b) : float_dot(sum, a, b);
}

INLINE int64_t bytes_of(enum type type, int64_t count) { return count * (type == BFLOAT16 ? 2 : 4); }

/* Scores of `rows` queries for so many groups of positions. */
INLINE void score_tile(enum type type, const int rows, const int groups, const float *queries,
                       int64_t dim, const char *keys, float *scores)
{
    const int64_t bytes = bytes_of(type, GROUP * dim);
    vec acc[ROWS * LINES];
#pragma unroll
    for (int i = 0; i < rows * groups; i++)
        acc[i] = vec_zero();
    for (int64_t at = 0; at < bytes; at += LINE) {
        line k[LINES];
#pragma unroll
        for (int g = 0; g < groups; g++)
            k[g] = line_load(keys + g * bytes + at);
#pragma unroll
        for (int r = 0; r < rows; r++) {
            line q = line_repeat(queries + r * dim + at / LINE);
#pragma unroll
            for (int g = 0; g < groups; g++)
                acc[r * groups + g] = dot(type, acc[r * groups + g], k[g], q);
        }
    }
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int g = 0; g < groups; g++)
            vec_store(scores + r * BLOCK + g * GROUP, acc[r * groups + g]);
}

/* Scores of `rows` queries for the first `count` positions of a block. */
INLINE void score_rows(enum type type, const int rows, const float *queries, int64_t dim,
                       const void *keys, int64_t block, int count, float *scores)
{
    const char *from = (const char *)keys + bytes_of(type, block * dim);
    int at = 0;
    for (; at + LINES * GROUP <= count; at += LINES * GROUP)
        score_tile(type, rows, LINES, queries, dim, from + bytes_of(type, at * dim), scores + at);
    for (; at < count; at += GROUP)
        score_tile(type, rows, 1, queries, dim, from + bytes_of(type, at * dim), scores + at);
}

/* outputs = outputs * correction + weights @ values, for so many groups of dimensions. */
INLINE void value_tile(enum type type, const int rows, const int groups, const float *weights,
                       const float *corrections, int64_t dim, const char *values, int positions,
                       float *outputs)
{
    const int steps = type == BFLOAT16 ? positions / 2 : positions;
    vec acc[ROWS * LINES];
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int g = 0; g < groups; g++)
            acc[r * groups + g] = vec_mul(vec_load(outputs + r * dim + g * GROUP),
                                          vec_set(corrections[r]));
    for (int s = 0; s < steps; s++) {
        line v[LINES];
#pragma unroll
        for (int g = 0; g < groups; g++)
            v[g] = line_load(values + s * dim * 4 + g * LINE);
#pragma unroll
        for (int r = 0; r < rows; r++) {
            line w = line_repeat(weights + r * BLOCK + s);
#pragma unroll
            for (int g = 0; g < groups; g++)
                acc[r * groups + g] = dot(type, acc[r * groups + g], v[g], w);
        }
    }
    if (type == BFLOAT16 && positions % 2)
        /* What lies beside the last position is not this sequence's. */
#pragma unroll
        for (int g = 0; g < groups; g++) {
            line v = line_firsts(line_load(values + steps * dim * 4 + g * LINE));
#pragma unroll
            for (int r = 0; r < rows; r++)
                acc[r * groups + g] = dot(type, acc[r * groups + g], v,
                                          line_repeat(weights + r * BLOCK + steps));
        }
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int g = 0; g < groups; g++)
            vec_store(outputs + r * dim + g * GROUP, acc[r * groups + g]);
}

/* outputs = outputs * correction + weights @ values of the first `positions` of a block. */
INLINE void value_rows(enum type type, const int rows, const float *weights,
                       const float *corrections, int64_t dim, const void *values, int64_t block,
                       int positions, float *outputs)
{
    const char *from = (const char *)values + bytes_of(type, block * dim);
    int64_t d = 0;
    for (; d + LINES * GROUP <= dim; d += LINES * GROUP)
        value_tile(type, rows, LINES, weights, corrections, dim, from + d * 4, positions,
                   outputs + d);
    for (; d < dim; d += GROUP)
        value_tile(type, rows, 1, weights, corrections, dim, from + d * 4, positions,
                   outputs + d);
}
