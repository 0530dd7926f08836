/* What is done to each number, pair or row on its own: norms, rotations, activations.
 *
 * Counts are multiples of GROUP. Knows vectors. Does not know layers or models.
 */
#ifndef ELEMENTWISE_H
#define ELEMENTWISE_H

#include <stdint.h>

enum activation { SILU, GELU_TANH, GELU };

/* to = from / sqrt(mean(from^2) + eps) * weight; `to` may be `from`. */
void rms_norm(float *to, const float *from, const float *weight, int64_t count, float eps);

/* gate = activation(gate) * up */
void activate(enum activation activation, float *gate, const float *up, int64_t count);

/* Turn head[i] and head[i + pairs] by an angle of which the cosine and sine are given. */
void rotate(float *head, const float *cosines, const float *sines, int64_t pairs);

/* to += scale * from */
void add_scaled(float *to, const float *from, float scale, int64_t count);

/* logits = cap * tanh(scale * logits / cap), or scale * logits where cap is 0; any count. */
void cap_logits(float *logits, float scale, float cap, int64_t count);

#endif
