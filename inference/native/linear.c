/* A tile of a few rows and a few outs keeps its sums in registers, eight partial sums each, while
 * it goes along the weights: every weight that is loaded and widened is used for all rows of the
 * tile. Four rows and three outs are what 16 registers hold.
 */
#include "linear.h"
#include "vector.h"

#include <string.h>

#define ROWS 4
#define OUTS 3
/* One row alone is bound by memory: more outs are more loads in flight. */
#define OUTS_OF_ONE 4
/* Outs that all rows meet before the next ones are read. */
#define OUTS_IN_CACHE 24
/* Bytes that a single row's weights are asked for in advance. */
#define PREFETCH 1024

/* Add up a tile; `rows` and `outs` are constants wherever this is used. */
INLINE void tile(enum type type, const int rows, const int outs, const void *weights, int64_t in,
                 const float *activations, float *sums, int64_t stride)
{
    vec acc[ROWS * OUTS_OF_ONE];
#pragma unroll
    for (int i = 0; i < rows * outs; i++)
        acc[i] = _mm256_setzero_ps();
    for (int64_t k = 0; k < in; k += GROUP) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            vec w[OUTS_OF_ONE];
#pragma unroll
            for (int o = 0; o < outs; o++) {
                if (type == BFLOAT16) {
                    const uint16_t *from = (const uint16_t *)weights + o * in + k;
                    if (rows == 1 && half == 0)
                        _mm_prefetch((const char *)from + PREFETCH, _MM_HINT_T0);
                    w[o] = half ? pairs_odd(pairs_load(from)) : pairs_even(pairs_load(from));
                } else {
                    const float *from = (const float *)weights + o * in + k + half * 8;
                    if (rows == 1)
                        _mm_prefetch((const char *)from + PREFETCH, _MM_HINT_T0);
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
    float flat[ROWS * OUTS_OF_ONE];
#pragma unroll
    for (int i = 0; i < rows * outs; i += 4) {
        vec zero = _mm256_setzero_ps();
        _mm_storeu_ps(flat + i, vec_sums4(acc[i], i + 1 < rows * outs ? acc[i + 1] : zero,
                                          i + 2 < rows * outs ? acc[i + 2] : zero,
                                          i + 3 < rows * outs ? acc[i + 3] : zero));
    }
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int o = 0; o < outs; o++)
            sums[r * stride + o] = flat[r * outs + o];
}

INLINE void tiles_of_outs(enum type type, const int rows, const void *weights, int64_t in, int outs,
                          const float *activations, float *sums, int64_t stride)
{
    const int width = rows == 1 ? OUTS_OF_ONE : OUTS;
    const int64_t bytes = in * (type == BFLOAT16 ? 2 : 4);
    int o = 0;
    for (; o + width <= outs; o += width)
        tile(type, rows, width, (const char *)weights + o * bytes, in, activations, sums + o,
             stride);
    for (; o < outs; o++)
        tile(type, rows, 1, (const char *)weights + o * bytes, in, activations, sums + o, stride);
}

INLINE void sums_of(enum type type, const struct matrix *matrix, int64_t first, int64_t end,
                    const float *activations, int rows, float *sums, int64_t stride)
{
    const int64_t in = matrix->in, bytes = in * (type == BFLOAT16 ? 2 : 4);
    const int64_t step = rows == 1 ? end - first : OUTS_IN_CACHE;
    for (int64_t out = first; out < end; out += step) {
        const void *weights = (const char *)matrix->weights + out * bytes;
        const int outs = (int)(end - out < step ? end - out : step);
        float *to = sums + (out - first);
        const float *from = activations;
        int left = rows;
        for (; left >= ROWS; left -= ROWS, from += ROWS * in, to += ROWS * stride)
            tiles_of_outs(type, ROWS, weights, in, outs, from, to, stride);
        if (left == 3)
            tiles_of_outs(type, 3, weights, in, outs, from, to, stride);
        else if (left == 2)
            tiles_of_outs(type, 2, weights, in, outs, from, to, stride);
        else if (left == 1)
            tiles_of_outs(type, 1, weights, in, outs, from, to, stride);
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

void linear_arrange(enum type type, float *to, const float *from, int64_t count)
{
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
