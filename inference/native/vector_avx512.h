/* Sixteen float32 at once on AVX-512, and products of bfloat16. A part of vector.h. */
#define LANES 16

typedef __m512 vec;
typedef __mmask16 vec_mask;

INLINE vec vec_load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void vec_store(float *to, vec v) { _mm512_storeu_ps(to, v); }
INLINE vec vec_set(float v) { return _mm512_set1_ps(v); }
INLINE vec vec_zero(void) { return _mm512_setzero_ps(); }
INLINE vec vec_lanes(void)
{
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec vec_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vec vec_round(vec a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* Of whole numbers. */
INLINE vec vec_power_of_two(vec n)
{
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}

/* Where least <= a <= most. */
INLINE vec_mask vec_within(vec a, vec least, vec most)
{
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(a, least, _CMP_GE_OQ), a, most, _CMP_LE_OQ);
}
INLINE vec_mask vec_differs(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
/* `a` where the mask is set, `b` elsewhere. */
INLINE vec vec_choose(vec_mask mask, vec a, vec b) { return _mm512_mask_blend_ps(mask, b, a); }

INLINE float vec_sum(vec a) { return _mm512_reduce_add_ps(a); }
INLINE float vec_largest(vec a) { return _mm512_reduce_max_ps(a); }

/* A line of memory: 32 bfloat16, which are 16 pairs, or 16 float32. */
#define LINE 64

typedef __m512i line;

INLINE line line_load(const char *from) { return _mm512_loadu_si512(from); }
/* The first half of a line, and zeros. */
INLINE line line_load_half(const char *from)
{
    return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)from));
}
/* Each pair's first number, and zeros. */
INLINE line line_firsts(line pairs) { return _mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF)); }
/* One pair, or one float32, 16 times. */
INLINE line line_repeat(const float *from) { return _mm512_castps_si512(_mm512_set1_ps(*from)); }

/* Products of bfloat16 are exact and added to a float32, odd members first; what is too small for
 * a normal number is taken for 0. */
INLINE vec bf16_dot(vec sum, line a, line b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
INLINE vec float_dot(vec sum, line a, line b)
{
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}

/* A group as bfloat16, to the nearest, ties to even. */
INLINE void bf16_store(uint16_t *to, vec group)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(group));
}

/* Sums of sixteen vectors' lanes, each in the same order. */
INLINE vec vec_sums16(const vec *of)
{
    vec four[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const vec a = of[4 * i], b = of[4 * i + 1], c = of[4 * i + 2], d = of[4 * i + 3];
        __m512d ab = _mm512_castps_pd(vec_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        __m512d cd = _mm512_castps_pd(vec_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        four[i] = vec_add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                          _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    vec first = vec_add(_mm512_shuffle_f32x4(four[0], four[1], 0x88),
                        _mm512_shuffle_f32x4(four[0], four[1], 0xDD));
    vec second = vec_add(_mm512_shuffle_f32x4(four[2], four[3], 0x88),
                         _mm512_shuffle_f32x4(four[2], four[3], 0xDD));
    return vec_add(_mm512_shuffle_f32x4(first, second, 0x88),
                   _mm512_shuffle_f32x4(first, second, 0xDD));
}
