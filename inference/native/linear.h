/* Products of rows of activations and a matrix of weights, read where they lie.
 *
 * Knows numbers and their types. Does not know threads or models.
 */
#ifndef LINEAR_H
#define LINEAR_H

#include <stdint.h>

enum type { FLOAT32, BFLOAT16 };

/* (out, in), contiguous; `in` is a multiple of GROUP. */
struct matrix {
    const void *weights;
    int64_t out, in;
};

/* A row of activations is room for `in` float32, in which they lie as the weights' type meets them:
 * `linear_arrange` brings numbers first ... first + count - 1 (multiples of GROUP) into it. Of a
 * whole row, `from` may be the row itself. */
void linear_arrange(enum type type, float *row, int64_t first, const float *from, int64_t count);

/* sums[row * stride + out - first] of outs first .. end-1, for rows of `in` arranged activations.
 *
 * Each sum is taken in one order, whatever the number of rows or outs. */
void linear_sums(enum type type, const struct matrix *matrix, int64_t first, int64_t end,
                 const float *activations, int rows, float *sums, int64_t stride);

/* Row `out` of a matrix as float32. */
void linear_row(enum type type, const struct matrix *matrix, int64_t out, float *to);

#endif
