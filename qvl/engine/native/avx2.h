// Sixteen floats as two vectors, for processors with AVX2 and FMA. The same names as in avx512.h.

#pragma once

#include <immintrin.h>

#include <cstdint>

typedef uint16_t bf16;

struct Vec {
  __m256 a, b;
};

// Which of sixteen: the first `count`; `a` and `b` have all bits of those set.
struct Mask {
  __m256i a, b;
  int64_t count;
};

static inline Mask first(int64_t count) {
  __m256i n = _mm256_set1_epi32((int)(count < 16 ? count : 16));
  return {_mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)), count};
}

static inline Mask first_or_none(int64_t count) { return first(count > 0 ? count : 0); }

// ---------------------------------------------------------------- bfloat16

static inline __m256 widen(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

// To the nearest, to the even one of two, in the lower half of each number; what is not a number stays so.
static inline __m256i narrow(__m256 v) {
  __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
  __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7FFF), _mm256_and_si256(high, _mm256_set1_epi32(1)));
  __m256i near = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  __m256 none = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(near, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), _mm256_castps_si256(none));
}

static inline __m256i narrow(Vec v) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow(v.a), narrow(v.b)), 0xD8);
}

static inline Vec widen16(__m256i v) {
  return {widen(_mm256_castsi256_si128(v)), widen(_mm256_extracti128_si256(v, 1))};
}

static inline Vec load16(const bf16* p) { return widen16(_mm256_loadu_si256((const __m256i*)p)); }

static inline void store16(bf16* p, Vec v) { _mm256_storeu_si256((__m256i*)p, narrow(v)); }

// There are no masks for numbers of two bytes.
static inline Vec load16_first(const bf16* p, Mask m) {
  if (m.count >= 16) return load16(p);
  bf16 some[16] = {0};
  __builtin_memcpy(some, p, 2 * m.count);
  return load16(some);
}

static inline void store16_first(bf16* p, Vec v, Mask m) {
  if (m.count >= 16) return store16(p, v);
  bf16 some[16];
  store16(some, v);
  __builtin_memcpy(p, some, 2 * m.count);
}

static inline Vec round16(Vec v) { return widen16(narrow(v)); }

static inline bf16 narrow1(float f) { return (bf16)_mm256_extract_epi16(narrow(_mm256_set1_ps(f)), 0); }

// ---------------------------------------------------------------- floats

static inline Vec all(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
static inline Vec zeros() { return all(0); }
static inline Vec load(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
static inline Vec load_first(const float* p, Mask m) {
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
static inline void store(float* p, Vec v) {
  _mm256_store_ps(p, v.a);
  _mm256_store_ps(p + 8, v.b);
}
static inline void store_first(float* p, Vec v, Mask m) {
  _mm256_maskstore_ps(p, m.a, v.a);
  _mm256_maskstore_ps(p + 8, m.b, v.b);
}
static inline void store_integers(int32_t* p, Vec v) {
  _mm256_store_si256((__m256i*)p, _mm256_cvtps_epi32(v.a));
  _mm256_store_si256((__m256i*)(p + 8), _mm256_cvtps_epi32(v.b));
}

static inline Vec add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline Vec sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline Vec mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline Vec div(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline Vec mul_add(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline Vec mul_sub(Vec x, Vec y, Vec z) {
  return {_mm256_fmsub_ps(x.a, y.a, z.a), _mm256_fmsub_ps(x.b, y.b, z.b)};
}
// Where one is not a number, these two give `y`.
static inline Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline Vec keep(Mask m, Vec v) { return {_mm256_and_ps(v.a, (__m256)m.a), _mm256_and_ps(v.b, (__m256)m.b)}; }
static inline Vec max_where(Mask m, Vec x, Vec y) {
  Vec most = max(x, y);
  return {_mm256_blendv_ps(x.a, most.a, (__m256)m.a), _mm256_blendv_ps(x.b, most.b, (__m256)m.b)};
}
static inline Vec abs(Vec v) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, v.a), _mm256_andnot_ps(sign, v.b)};
}
static inline Vec nearest(Vec v) {
  constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(v.a, how), _mm256_round_ps(v.b, how)};
}

static inline float sum_of(Vec v) {
  __m256 s = _mm256_add_ps(v.a, v.b);
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}

static inline float largest_of(Vec v) {
  __m256 s = _mm256_max_ps(v.a, v.b);
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

// 2^x; relative error 2e-7. -inf and everything below -126 become next to 0, everything from 127.5 infinite.
static inline Vec exp2_16(Vec x) {
  x = min(all(128.0f), max(all(-126.0f), x));  // in this order not-a-number stays what it is
  Vec n = nearest(x), f = sub(x, n), p = all(1.54035304e-4f);
  for (float c : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f})
    p = mul_add(p, f, all(c));
  auto power = [](__m256 n) {  // built from its exponent
    return (__m256)_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  };
  return mul(p, {power(n.a), power(n.b)});
}
