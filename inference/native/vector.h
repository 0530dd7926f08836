/* Several float32 at once, and bfloat16, in the registers of the set that a file is compiled for.
 *
 * Knows registers. Does not know matrices or models.
 */
#ifndef VECTOR_H
#define VECTOR_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* All rows of matrices, and all heads, are multiples of this many numbers. */
#define GROUP 16

#define INLINE static inline __attribute__((always_inline))

INLINE float bf16_to_float(uint16_t bits)
{
    union { uint32_t bits; float value; } u = { (uint32_t)bits << 16 };
    return u.value;
}

/* To the nearest, ties to even; a NaN stays one. */
INLINE uint16_t bf16_from_float(float value)
{
    union { float value; uint32_t bits; } u = { value };
    if (value != value)
        return (uint16_t)(u.bits >> 16 | 0x40);
    return (uint16_t)((u.bits + 0x7FFF + (u.bits >> 16 & 1)) >> 16);
}

/* `vec` of LANES numbers, and what the processor does with it. */
#ifdef __AVX512BF16__
#include "vector_avx512.h"
#else
#include "vector_avx2.h"
#endif

/* e^x within two units in the last place; NaN stays NaN. */
INLINE vec vec_exp(vec x)
{
    /* min and max give their second operand where one is NaN. */
    x = vec_min(vec_set(88.37f), x);
    x = vec_max(vec_set(-87.33f), x);
    vec n = vec_round(vec_mul(x, vec_set(1.44269504f)));
    vec r = vec_fnma(n, vec_set(0.693359375f), x);
    r = vec_fnma(n, vec_set(-2.12194440e-4f), r);
    vec p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_add(vec_fma(vec_mul(r, r), p, r), vec_set(1.0f));
    return vec_mul(p, vec_power_of_two(n));
}

INLINE vec vec_tanh(vec x)
{
    vec e = vec_exp(vec_add(x, x));
    return vec_sub(vec_set(1.0f), vec_div(vec_set(2.0f), vec_add(e, vec_set(1.0f))));
}

/* cap * tanh(x / cap) */
INLINE vec vec_softcap(vec x, float cap)
{
    return vec_mul(vec_set(cap), vec_tanh(vec_div(x, vec_set(cap))));
}

#endif
