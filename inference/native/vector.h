/* Eight float32 at once on AVX2 with FMA, and bfloat16 read as float32.
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

typedef __m256 vec;

INLINE vec vec_load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void vec_store(float *to, vec v) { _mm256_storeu_ps(to, v); }
INLINE vec vec_set(float v) { return _mm256_set1_ps(v); }
INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }

/* A group of 16 bfloat16 is eight pairs; a bfloat16 is the upper half of a float32. */
INLINE __m256i pairs_load(const uint16_t *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}
INLINE vec pairs_even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
INLINE vec pairs_odd(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xFFFF0000)));
}

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

/* The order in which a group meets bfloat16 weights: its even members, then its odd ones. */
INLINE void vec_store_even_odd(float *to, vec low, vec high)
{
    vec even = _mm256_shuffle_ps(low, high, 0x88), odd = _mm256_shuffle_ps(low, high, 0xDD);
    vec_store(to, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xD8)));
    vec_store(to + 8, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xD8)));
}

/* Sums of four vectors' lanes, each in the same order. */
INLINE __m128 vec_sums4(vec a, vec b, vec c, vec d)
{
    vec s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

INLINE float vec_sum(vec a)
{
    vec zero = _mm256_setzero_ps();
    return _mm_cvtss_f32(vec_sums4(a, zero, zero, zero));
}

INLINE float vec_largest(vec a)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* e^x within two units in the last place; NaN stays NaN. */
INLINE vec vec_exp(vec x)
{
    /* min and max give their second operand where one is NaN. */
    x = _mm256_min_ps(vec_set(88.37f), x);
    x = _mm256_max_ps(vec_set(-87.33f), x);
    vec n = _mm256_round_ps(vec_mul(x, vec_set(1.44269504f)),
                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec r = _mm256_fnmadd_ps(n, vec_set(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, vec_set(-2.12194440e-4f), r);
    vec p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_add(vec_fma(vec_mul(r, r), p, r), vec_set(1.0f));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n),
                                                       _mm256_set1_epi32(127)), 23);
    return vec_mul(p, _mm256_castsi256_ps(power));
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
