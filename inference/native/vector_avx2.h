/* Eight float32 at once on AVX2 with FMA, and bfloat16 read as float32. A part of vector.h. */
#define LANES 8

typedef __m256 vec;
typedef __m256 vec_mask;

INLINE vec vec_load(const float *from) { return _mm256_loadu_ps(from); }
INLINE void vec_store(float *to, vec v) { _mm256_storeu_ps(to, v); }
INLINE vec vec_set(float v) { return _mm256_set1_ps(v); }
INLINE vec vec_zero(void) { return _mm256_setzero_ps(); }
INLINE vec vec_lanes(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec vec_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vec vec_round(vec a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Of whole numbers. */
INLINE vec vec_power_of_two(vec n)
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}

/* Where least <= a <= most. */
INLINE vec_mask vec_within(vec a, vec least, vec most)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, least, _CMP_GE_OQ), _mm256_cmp_ps(a, most, _CMP_LE_OQ));
}
INLINE vec_mask vec_differs(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
/* `a` where the mask is set, `b` elsewhere. */
INLINE vec vec_choose(vec_mask mask, vec a, vec b) { return _mm256_blendv_ps(b, a, mask); }

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
