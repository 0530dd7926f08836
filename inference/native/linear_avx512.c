/* As on AVX2, a tile of a few rows and a few outs keeps its sums in registers while it goes along
 * the weights, here a line of memory at a time: eight rows and three outs are what 32 registers
 * hold. Activations that meet bfloat16 are bfloat16 themselves, side by side, so that a line of
 * them meets a line of weights.
 *
 * A few rows alone are bound by memory, and memory is fastest when read from front to back.
 */
#include "linear.h"
#include "vector.h"

#include <string.h>

#define ROWS 8
#define OUTS 3
/* Outs that all rows meet before the next ones, which are asked for meanwhile. */
#define OUTS_IN_CACHE 12
/* Bytes that a few rows' weights are asked for in advance. */
#define PREFETCH 8192

/* What a product reads: rows of activations lie `in` float32 apart, weights `bytes` bytes. */
struct side {
    const char *weights;
    int64_t bytes;
    const float *activations;
    int64_t in;
};

INLINE vec dot(enum type type, vec sum, line a, line b)
{
    return type == BFLOAT16 ? bf16_dot(sum, a, b) : float_dot(sum, a, b);
}

/* Add a line, or half a one, to the sums of a tile. */
INLINE void add_line(enum type type, const int rows, const int outs, const int half,
                     const struct side *side, int64_t at, int64_t ahead, vec *sums)
{
    line w[OUTS];
#pragma unroll
    for (int o = 0; o < outs; o++) {
        const char *from = side->weights + o * side->bytes + at;
        if (ahead)
            _mm_prefetch(from + ahead, _MM_HINT_T1);
        w[o] = half ? line_load_half(from) : line_load(from);
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
        const char *from = (const char *)(side->activations + r * side->in) + at;
        line x = half ? line_load_half(from) : line_load(from);
#pragma unroll
        for (int o = 0; o < outs; o++)
            sums[r * outs + o] = dot(type, sums[r * outs + o], w[o], x);
    }
}

/* Add up a tile; `rows` and `outs` are constants wherever this is used. As much as it reads is
 * asked for at `ahead` bytes behind, if that is not 0. */
INLINE void tile(enum type type, const int rows, const int outs, const struct side *side,
                 int64_t ahead, vec *sums)
{
    int64_t at = 0;
#pragma unroll
    for (int i = 0; i < rows * outs; i++)
        sums[i] = vec_zero();
    for (; at + LINE <= side->bytes; at += LINE)
        add_line(type, rows, outs, 0, side, at, ahead, sums);
    if (type == BFLOAT16 && at < side->bytes)
        add_line(type, rows, outs, 1, side, at, ahead, sums);
}

/* A tile's sums, as numbers, to where they belong. */
INLINE void scatter(const int rows, const int outs, const vec *sums, float *to, int64_t stride)
{
    float flat[(ROWS * OUTS + LANES - 1) / LANES * LANES];
#pragma unroll
    for (int first = 0; first < rows * outs; first += LANES) {
        vec some[LANES];
#pragma unroll
        for (int i = 0; i < LANES; i++)
            some[i] = first + i < rows * outs ? sums[first + i] : vec_zero();
        vec_store(flat + first, vec_sums16(some));
    }
#pragma unroll
    for (int r = 0; r < rows; r++)
#pragma unroll
        for (int o = 0; o < outs; o++)
            to[r * stride + o] = flat[r * outs + o];
}

/* Tiles of all the rows and one out, so that weights are read from front to back; as many outs as
 * fill a vector of sums are added up together. */
INLINE void few_rows(enum type type, const int rows, struct side side, int outs, float *to,
                     int64_t stride)
{
    enum { MOST = LANES };
    const int together = LANES / rows;
    vec sums[MOST];
    for (int i = 0; i < MOST; i++)
        sums[i] = vec_zero();
    for (int o = 0; o < outs; o += together) {
        const int some = outs - o < together ? outs - o : together;
        for (int i = 0; i < some; i++, side.weights += side.bytes) {
            vec own[ROWS];
            tile(type, rows, 1, &side, PREFETCH, own);
#pragma unroll
            for (int r = 0; r < rows; r++)
                sums[i * rows + r] = own[r];
        }
        float flat[LANES];
        vec_store(flat, vec_sums16(sums));
        for (int i = 0; i < some; i++)
#pragma unroll
            for (int r = 0; r < rows; r++)
                to[r * stride + o + i] = flat[i * rows + r];
    }
}

/* The rows share the asking for what lies `ahead`: this is group `turn` of `turns`. */
INLINE void tiles_of_outs(enum type type, const int rows, struct side side, int outs,
                          int64_t ahead, int turn, int turns, float *to, int64_t stride)
{
    int o = 0;
    for (int number = 0; o + OUTS <= outs; o += OUTS, number++) {
        vec sums[ROWS * OUTS];
        if (ahead && number % turns == turn)
            tile(type, rows, OUTS, &side, ahead, sums);
        else
            tile(type, rows, OUTS, &side, 0, sums);
        scatter(rows, OUTS, sums, to + o, stride);
        side.weights += OUTS * side.bytes;
    }
    for (; o < outs; o++, side.weights += side.bytes) {
        vec sums[ROWS];
        tile(type, rows, 1, &side, 0, sums);
        scatter(rows, 1, sums, to + o, stride);
    }
}

#define BY_ROWS(rows, call)                                                                        \
    switch (rows) {                                                                                \
    case 1: { enum { N = 1 }; call; } break;                                                       \
    case 2: { enum { N = 2 }; call; } break;                                                       \
    case 3: { enum { N = 3 }; call; } break;                                                       \
    case 4: { enum { N = 4 }; call; } break;                                                       \
    case 5: { enum { N = 5 }; call; } break;                                                       \
    case 6: { enum { N = 6 }; call; } break;                                                       \
    case 7: { enum { N = 7 }; call; } break;                                                       \
    default: { enum { N = 8 }; call; } break;                                                      \
    }

INLINE void sums_of(enum type type, const struct matrix *matrix, int64_t first, int64_t end,
                    const float *activations, int rows, float *sums, int64_t stride)
{
    const int64_t in = matrix->in, bytes = in * (type == BFLOAT16 ? 2 : 4);
    const int64_t step = OUTS_IN_CACHE;
    const int turns = (rows + ROWS - 1) / ROWS;
    struct side side = { (const char *)matrix->weights + first * bytes, bytes, activations, in };
    if (rows <= ROWS) {
        BY_ROWS(rows, few_rows(type, N, side, (int)(end - first), sums, stride))
        return;
    }
    for (int64_t out = first; out < end; out += step, side.weights += step * bytes) {
        const int outs = (int)(end - out < step ? end - out : step);
        const int64_t ahead = out + step < end ? step * bytes : 0;
        for (int turn = 0; turn < turns; turn++) {
            const int row = turn * ROWS, some = rows - row < ROWS ? rows - row : ROWS;
            float *to = sums + row * stride + (out - first);
            side.activations = activations + row * in;
            BY_ROWS(some, tiles_of_outs(type, N, side, outs, ahead, turn, turns, to, stride))
        }
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
    if (type == FLOAT32) {
        if (row + first != from)
            memcpy(row + first, from, (size_t)count * sizeof *row);
        return;
    }
    uint16_t *to = (uint16_t *)row + first;
    for (int64_t i = 0; i < count; i += GROUP)
        bf16_store(to + i, vec_load(from + i));
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
