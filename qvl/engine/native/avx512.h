// Sixteen floats as one vector, for processors with AVX512-bf16. The same names as in avx2.h.

#pragma once

#include <immintrin.h>

#include <cstdint>

typedef uint16_t bf16;
typedef __m512 Vec;
typedef __mmask16 Mask;

// Which of sixteen: the first `count`, which is not negative.
static inline Mask first(int64_t count) { return count >= 16 ? 0xFFFF : (1 << count) - 1; }

static inline Mask first_or_none(int64_t count) { return count >= 16 ? 0xFFFF : count > 0 ? (1 << count) - 1 : 0; }

// ---------------------------------------------------------------- bfloat16

static inline __m512bh load(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }

static inline __m512bh load_first(const bf16* p, int count) {
  return (__m512bh)_mm512_maskz_loadu_epi16((1u << count) - 1, p);
}

static inline __m512 widen(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

static inline __m512 load16(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }

static inline __m512 load16_first(const bf16* p, __mmask16 mask) {
  return widen(_mm256_maskz_loadu_epi16(mask, p));
}

static inline void store16(bf16* p, __m512 v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }

static inline void store16_first(bf16* p, __m512 v, __mmask16 mask) {
  _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}

static inline __m512 round16(__m512 v) { return widen((__m256i)_mm512_cvtneps_pbh(v)); }

static inline bf16 narrow1(float f) { return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(f)), 0); }

// ---------------------------------------------------------------- floats

static inline Vec all(float f) { return _mm512_set1_ps(f); }
static inline Vec zeros() { return _mm512_setzero_ps(); }
static inline Vec load(const float* p) { return _mm512_load_ps(p); }
static inline Vec load_first(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
static inline void store(float* p, Vec v) { _mm512_store_ps(p, v); }
static inline void store_integers(int32_t* p, Vec v) { _mm512_store_si512(p, _mm512_cvtps_epi32(v)); }

static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
static inline Vec mul_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec mul_sub(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }
static inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec max_where(Mask m, Vec a, Vec b) { return _mm512_mask_max_ps(a, m, a, b); }
static inline Vec keep(Mask m, Vec v) { return _mm512_maskz_mov_ps(m, v); }
static inline Vec abs(Vec v) { return _mm512_abs_ps(v); }
static inline Vec nearest(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline float sum_of(Vec v) { return _mm512_reduce_add_ps(v); }
static inline float largest_of(Vec v) { return _mm512_reduce_max_ps(v); }

// The sums of four vectors, side by side.
static inline __m128 sum4(__m512 a, __m512 b, __m512 c, __m512 d) {
  __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
  __m512 s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}

// 2^x; relative error 2e-7. -inf and everything below -126 become 0 or next to it.
static inline __m512 exp2_16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-140.0f), x);  // in this order not-a-number stays what it is
  __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.54035304e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.33335581e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.61812911e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55041087e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40226507e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93147181e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}
