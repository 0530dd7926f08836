/* A tile of a few rows and a few outs keeps its sums in registers, eight partial sums each, while
 * it goes along the weights: every weight that is loaded and widened is used for all rows of the
 * tile. Four rows and three outs are what 16 registers hold.
 *
 * A few rows alone are bound by memory, and memory is fastest when read from front to back.
 */
#include "linear.h"
#include "vector.h"

#include <string.h>

#define ROWS 4
#define OUTS 3
/* Outs that all rows meet before the next ones, which are asked for meanwhile. */
#define OUTS_IN_CACHE 12
/* Bytes that a few rows' weights are asked for in advance. */
#define PREFETCH 8192

/* The sums of the lanes of `count` vectors, which are followed by enough room for a whole store. */
INLINE void sum_lanes(const int count, const vec *from, float *to)
{
    const vec zero = _mm256_setzero_ps();
#pragma unroll
    for (int i = 0; i < count; i += 4)
        _mm_storeu_ps(to + i, vec_sums4(from[i], i + 1 < count ? from[i + 1] : zero,
                                        i + 2 < count ? from[i + 2] : zero,
                                        i + 3 < count ? from[i + 3] : zero));
}

/* Add up a lone row. */
INLINE void row_alone(enum type type, const char *weights, int64_t in, int outs,
                      const float *activations, float *sums)
{
    const int64_t bytes = in * (type == BFLOAT16 ? 2 : 4);
    for (int o = 0; o < outs; o += 4) {
        vec acc[4];
        for (int i = 0; i < 4; i++) {
            acc[i] = _mm256_setzero_ps();
            if (o + i >= outs)
                continue;
            for (int64_t k = 0; k < in; k += GROUP) {
                if (type == BFLOAT16) {
                    const uint16_t *from = (const uint16_t *)weights + k;
                    __m256i pairs = pairs_load(from);
                    _mm_prefetch((const char *)from + PREFETCH, _MM_HINT_T1);
                    acc[i] = vec_fma(pairs_even(pairs), vec_load(activations + k), acc[i]);
                    acc[i] = vec_fma(pairs_odd(pairs), vec_load(activations + k + 8), acc[i]);
                } else {
                    const float *from = (const float *)weights + k;
                    _mm_prefetch((const char *)from + PREFETCH, _MM_HINT_T1);
                    acc[i] = vec_fma(vec_load(from), vec_load(activations + k), acc[i]);
                    acc[i] = vec_fma(vec_load(from + 8), vec_load(activations + k + 8), acc[i]);
                }
            }
            weights += bytes;
        }
        float four[4];
        sum_lanes(4, acc, four);
        for (int i = 0; i < 4 && o + i < outs; i++)
            sums[o + i] = four[i];
    }
}

/* Add up a tile; `rows` and `outs` are constants wherever this is used. As much as it reads is
 * asked for at `ahead` bytes behind, if that is not 0. */
INLINE void tile(enum type type, const int rows, const int outs, const void *weights, int64_t in,
                 int64_t ahead, const float *activations, float *sums, int64_t stride)
{
    vec acc[ROWS * OUTS];
#pragma unroll
    for (int i = 0; i < rows * outs; i++)
        acc[i] = _mm256_setzero_ps();
    for (int64_t k = 0; k < in; k += GROUP) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            vec w[OUTS];
            /* The odd half is loaded anew: registers are scarce. */
            if (rows == ROWS)
                __asm__ volatile("" ::: "memory");
#pragma unroll
            for (int o = 0; o < outs; o++) {
                if (type == BFLOAT16) {
                    const uint16_t *from = (const uint16_t *)weights + o * in + k;
                    if (ahead && half == 0)
                        _mm_prefetch((const char *)from + ahead, _MM_HINT_T1);
                    w[o] = half ? pairs_odd(pairs_load(from)) : pairs_even(pairs_load(from));
                } else {
                    const float *from = (const float *)weights + o * in + k + half * 8;
                    if (ahead)
                        _mm_prefetch((const char *)from + ahead, _MM_HINT_T1);
                    w[o] = vec_load(from);
                }
            }
#pragma unroll
            for (int r = 0; r < rows; r++) {
                vec x = vec_load(activations + r * in + k + half * 8);
#pragma unroll
                for (int o = 0; o < outs; o++)
                    acc[r * outs + o] = vec_fma(w[o], x, acc[r * outs + o]);
            }
        }
    }
    float flat[ROWS * OUTS];
    sum_lanes(rows * outs, acc, flat);
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int o = 0; o < outs; o++)
            sums[r * stride + o] = flat[r * outs + o];
}

/* Tiles of all the rows and one out, so that weights are read from front to back. */
INLINE void few_rows(enum type type, const char *weights, int64_t in, int outs,
                     const float *activations, int rows, float *sums, int64_t stride)
{
    const int64_t bytes = in * (type == BFLOAT16 ? 2 : 4);
    if (rows == 1)
        row_alone(type, weights, in, outs, activations, sums);
    else if (rows == 2)
        for (int o = 0; o < outs; o++)
            tile(type, 2, 1, weights + o * bytes, in, PREFETCH, activations, sums + o, stride);
    else if (rows == 3)
        for (int o = 0; o < outs; o++)
            tile(type, 3, 1, weights + o * bytes, in, PREFETCH, activations, sums + o, stride);
    else
        for (int o = 0; o < outs; o++)
            tile(type, 4, 1, weights + o * bytes, in, PREFETCH, activations, sums + o, stride);
}

/* The rows share the asking for what lies `ahead`: this is group `turn` of `turns`. */
INLINE void tiles_of_outs(enum type type, const int rows, const void *weights, int64_t in, int outs,
                          int64_t ahead, int turn, int turns, const float *activations, float *sums,
                          int64_t stride)
{
    const int64_t bytes = in * (type == BFLOAT16 ? 2 : 4);
    int o = 0;
    for (int number = 0; o + OUTS <= outs; o += OUTS, number++) {
        const void *from = (const char *)weights + o * bytes;
        if (ahead && number % turns == turn)
            tile(type, rows, OUTS, from, in, ahead, activations, sums + o, stride);
        else
            tile(type, rows, OUTS, from, in, 0, activations, sums + o, stride);
    }
    for (; o < outs; o++)
        tile(type, rows, 1, (const char *)weights + o * bytes, in, 0, activations, sums + o, stride);
}

INLINE void sums_of(enum type type, const struct matrix *matrix, int64_t first, int64_t end,
                    const float *activations, int rows, float *sums, int64_t stride)
{
    const int64_t in = matrix->in, bytes = in * (type == BFLOAT16 ? 2 : 4);
    const int64_t step = OUTS_IN_CACHE;
    const int turns = (rows + ROWS - 1) / ROWS;
    if (rows <= ROWS) {
        few_rows(type, (const char *)matrix->weights + first * bytes, in, (int)(end - first),
                 activations, rows, sums, stride);
        return;
    }
    for (int64_t out = first; out < end; out += step) {
        const void *weights = (const char *)matrix->weights + out * bytes;
        const int outs = (int)(end - out < step ? end - out : step);
        const int64_t ahead = out + step < end ? step * bytes : 0;
        float *to = sums + (out - first);
        const float *from = activations;
        int turn = 0, left = rows;
        for (; left >= ROWS; left -= ROWS, turn++, from += ROWS * in, to += ROWS * stride)
            tiles_of_outs(type, ROWS, weights, in, outs, ahead, turn, turns, from, to, stride);
        if (left == 3)
            tiles_of_outs(type, 3, weights, in, outs, ahead, turn, turns, from, to, stride);
        else if (left == 2)
            tiles_of_outs(type, 2, weights, in, outs, ahead, turn, turns, from, to, stride);
        else if (left == 1)
            tiles_of_outs(type, 1, weights, in, outs, ahead, turn, turns, from, to, stride);
    }
}

void linear_sums(enum type type, const struct matrix *matrix, int64_t first, int64_t end,
                 const float *activations, int rows, float *sums, int64_t stride)
{
    if (type == BFLOAT16)
        sums_of(BFLOAT16, matrix, first, end, activations, rows, sums, stride);
    else
        sums_of(FLOAT32, matrix, first, end, activations, rows, sums, stride);
}

void linear_arrange(enum type type, float *row, int64_t first, const float *from, int64_t count)
{
    float *to = row + first;
    if (type == FLOAT32) {
        if (to != from)
            memcpy(to, from, (size_t)count * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < count; i += GROUP)
        vec_store_even_odd(to + i, vec_load(from + i), vec_load(from + i + 8));
}

void linear_row(enum type type, const struct matrix *matrix, int64_t out, float *to)
{
    if (type == FLOAT32) {
        memcpy(to, (const float *)matrix->weights + out * matrix->in, (size_t)matrix->in * 4);
        return;
    }
    const uint16_t *from = (const uint16_t *)matrix->weights + out * matrix->in;
    for (int64_t i = 0; i < matrix->in; i++)
        to[i] = bf16_to_float(from[i]);
}
