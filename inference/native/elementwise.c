#include "elementwise.h"
#include "vector.h"

#define HALF_SQRT 0.70710678f
#define GELU_SLOPE 0.79788456f /* sqrt(2 / pi) */

void rms_norm(float *to, const float *from, const float *weight, int64_t count, float eps)
{
    vec low = vec_zero(), high = low;
    for (int64_t i = 0; i < count; i += GROUP) {
        vec a = vec_load(from + i), b = vec_load(from + i + GROUP - LANES);
        low = vec_fma(a, a, low);
        if (LANES < GROUP)
            high = vec_fma(b, b, high);
    }
    vec factor = vec_set(1.0f / sqrtf(vec_sum(vec_add(low, high)) / (float)count + eps));
    for (int64_t i = 0; i < count; i += LANES)
        vec_store(to + i, vec_mul(vec_mul(vec_load(from + i), factor), vec_load(weight + i)));
}

void activate(enum activation activation, float *gate, const float *up, int64_t count)
{
    const vec one = vec_set(1.0f), half = vec_set(0.5f);
    for (int64_t i = 0; i < count; i += LANES) {
        vec g = vec_load(gate + i), share;
        if (activation == SILU) {
            share = vec_div(one, vec_add(one, vec_exp(vec_sub(vec_zero(), g))));
        } else if (activation == GELU_TANH) {
            vec cubic = vec_fma(vec_mul(vec_mul(g, g), g), vec_set(0.044715f), g);
            share = vec_fma(half, vec_tanh(vec_mul(cubic, vec_set(GELU_SLOPE))), half);
        } else {
            float error[LANES];
            vec_store(error, vec_mul(g, vec_set(HALF_SQRT)));
            for (int lane = 0; lane < LANES; lane++)
                error[lane] = erff(error[lane]);
            share = vec_fma(half, vec_load(error), half);
        }
        vec_store(gate + i, vec_mul(vec_mul(g, share), vec_load(up + i)));
    }
}

void rotate(float *head, const float *cosines, const float *sines, int64_t pairs)
{
    for (int64_t i = 0; i < pairs; i++) {
        float a = head[i], b = head[i + pairs];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + pairs] = b * cosines[i] + a * sines[i];
    }
}

void add_scaled(float *to, const float *from, float scale, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        to[i] += scale * from[i];
}

void cap_logits(float *logits, float scale, float cap, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        logits[i] *= scale;
        if (cap > 0)
            logits[i] = cap * tanhf(logits[i] / cap);
    }
}
