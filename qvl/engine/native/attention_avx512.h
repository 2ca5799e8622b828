// The products of attention by AVX512-bf16: a pair of numbers of a query, or of weights, is one factor.

#pragma once

#include "attention.h"

namespace {

typedef bf16 Factor;

static inline void store_factors(Factor* to, Vec v) { store16(to, v); }

// Queries are used where they lie.
struct Queries {
  const Factor* query(const bf16* from, int, int) { return from; }
};

template <int MR, int NC>
void scores(const bf16* const* q, int head, const bf16* const* keys, Scores* s) {
  __m512 acc[MR][NC];
  for (int i = 0; i < MR; i++)
    for (int c = 0; c < NC; c++) acc[i][c] = _mm512_setzero_ps();
  for (int h = 0; h < head / 2; h++) {
    __m512bh k[NC];
    for (int c = 0; c < NC; c++) k[c] = load(keys[c] + 32 * h);
    for (int i = 0; i < MR; i++) {
      int pair;
      __builtin_memcpy(&pair, q[i] + 2 * h, 4);
      __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
      for (int c = 0; c < NC; c++) acc[i][c] = _mm512_dpbf16_ps(acc[i][c], a, k[c]);
    }
  }
  for (int i = 0; i < MR; i++)
    for (int c = 0; c < NC; c++) _mm512_store_ps(s[i] + kCell * c, acc[i][c]);
}

template <int MR>
inline void all_scores(const Factor* const* q, int head, const bf16* const* keys, int cells, Scores* s) {
  for (int c = 0; c < cells; c += 4) {
    Scores* to = (Scores*)(&s[0][kCell * c]);
    switch (cells - c) {
      case 1: scores<MR, 1>(q, head, keys + c, to); break;
      case 2: scores<MR, 2>(q, head, keys + c, to); break;
      case 3: scores<MR, 3>(q, head, keys + c, to); break;
      default: scores<MR, 4>(q, head, keys + c, to);
    }
  }
}

template <int MR, int NV>
void gather(const bf16 (*p)[kBlock * kCell], const bf16* const* values, int cells, int head, int first,
            const float* shrink, float* acc_rows) {
  __m512 acc[MR][NV];
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < NV; v++)
      acc[i][v] = _mm512_mul_ps(_mm512_load_ps(acc_rows + i * head + first + 16 * v), _mm512_set1_ps(shrink[i]));
  for (int c = 0; c < cells; c++)
    for (int pair = 0; pair < kCell / 2; pair++) {
      const bf16* row = values[c] + 2 * (pair * head + first);
      __m512bh x[NV];
      for (int v = 0; v < NV; v++) x[v] = load(row + 32 * v);
      for (int i = 0; i < MR; i++) {
        int two;
        __builtin_memcpy(&two, p[i] + kCell * c + 2 * pair, 4);
        __m512bh w = (__m512bh)_mm512_set1_epi32(two);
        for (int v = 0; v < NV; v++) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], w, x[v]);
      }
    }
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < NV; v++) _mm512_store_ps(acc_rows + i * head + first + 16 * v, acc[i][v]);
}

template <int MR>
inline void all_values(const Factor (*p)[kBlock * kCell], const bf16* const* values, int cells, int head,
                       const float* shrink, float* acc) {
  int v = 0;
  for (; v + 64 <= head; v += 64) gather<MR, 4>(p, values, cells, head, v, shrink, acc);
  if (head - v == 48) gather<MR, 3>(p, values, cells, head, v, shrink, acc);
  if (head - v == 32) gather<MR, 2>(p, values, cells, head, v, shrink, acc);
  if (head - v == 16) gather<MR, 1>(p, values, cells, head, v, shrink, acc);
}

}  // namespace
