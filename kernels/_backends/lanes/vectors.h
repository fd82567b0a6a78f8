/* Vectors of W numbers, one of each of W matrices, for the precision that DOUBLE (0 or 1) names.
 *
 * REAL, INTEGER (of the same width), vec, ivec (also the type of a comparison: all bits of a lane set, or none),
 * and the five operations that C has no operator for. The rest is written with operators on `vec`. The file is
 * compiled with contraction off, so that a product plus a sum rounds once where `multiply_add` says so and nowhere
 * else: the bits of a result must not depend on how a compiler unrolled a loop.
 */
#if DOUBLE
#define REAL double
#define INTEGER int64_t
#define EPSILON 2.220446049250313e-16
#define SMALLEST_NORMAL 2.2250738585072014e-308
#define LARGEST 1.7976931348623157e308
#define EXPONENT_BIAS 1023
#define FRACTION_BITS 52
#else
#define REAL float
#define INTEGER int32_t
#define EPSILON 1.1920928955078125e-7f
#define SMALLEST_NORMAL 1.1754943508222875e-38f
#define LARGEST 3.4028234663852886e38f
#define EXPONENT_BIAS 127
#define FRACTION_BITS 23
#endif

#if defined(VECTOR_BYTES) /* a test asks for a width: no intrinsics, and the bits of any other width */
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#define INTRINSICS 1
#elif defined(__AVX2__) && defined(__FMA__)
#define VECTOR_BYTES 32
#define INTRINSICS 1
#else
#define VECTOR_BYTES 16
#endif
#ifndef INTRINSICS
#define INTRINSICS 0
#endif
#define W ((int)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL vec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef INTEGER ivec __attribute__((vector_size(VECTOR_BYTES), may_alias));

/* multiply_add: a b + c, rounded once where the instruction set can. choose: per lane, a where the mask is set. */


#if INTRINSICS && VECTOR_BYTES == 64 && DOUBLE
static inline vec multiply_add(vec a, vec b, vec c) { return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
static inline vec square_root(vec a) { return (vec)_mm512_sqrt_pd((__m512d)a); }
static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)_mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)mask), (__m512d)b, (__m512d)a);
}
static inline int any_lane(ivec mask) { return _mm512_movepi64_mask((__m512i)mask) != 0; }
#elif INTRINSICS && VECTOR_BYTES == 64
static inline vec multiply_add(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static inline vec square_root(vec a) { return (vec)_mm512_sqrt_ps((__m512)a); }
static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)b, (__m512)a);
}
static inline int any_lane(ivec mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
#elif INTRINSICS && DOUBLE
static inline vec multiply_add(vec a, vec b, vec c) { return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
static inline vec square_root(vec a) { return (vec)_mm256_sqrt_pd((__m256d)a); }
static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)mask);
}
static inline int any_lane(ivec mask) { return _mm256_movemask_pd((__m256d)mask) != 0; }
#elif INTRINSICS
static inline vec multiply_add(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static inline vec square_root(vec a) { return (vec)_mm256_sqrt_ps((__m256)a); }
static inline vec choose(ivec mask, vec a, vec b) {
    return (vec)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
}
static inline int any_lane(ivec mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
#else
/* Any processor: two roundings in `multiply_add`, no intrinsics. */
static inline vec multiply_add(vec a, vec b, vec c) { return a * b + c; }
static inline vec square_root(vec a) {
    for (int q = 0; q < W; ++q) a[q] = DOUBLE ? sqrt(a[q]) : sqrtf(a[q]);
    return a;
}
static inline vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
static inline int any_lane(ivec mask) {
    INTEGER set = 0;
    for (int q = 0; q < W; ++q) set |= mask[q];
    return set != 0;
}
#endif

static inline vec all_lanes(REAL x) { return x - (vec){0}; } /* not 0 + x, which is +0 for x = -0 */
static inline vec where(ivec mask, vec a) { return (vec)(mask & (ivec)a); } /* 0 where the mask is not set */
static inline vec magnitude(vec a) { return (vec)(~(ivec)all_lanes((REAL)-0.0) & (ivec)a); }
static inline vec with_sign_flipped_by(vec a, vec b) { return (vec)((ivec)a ^ ((ivec)all_lanes((REAL)-0.0) & (ivec)b)); }
static inline vec with_sign_of(vec a, vec b) { return with_sign_flipped_by(magnitude(a), b); }
