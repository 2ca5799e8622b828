// The products of attention by AVX2 and FMA: keys and values are widened to float32 in registers, once for a tile of rows;
// what they are multiplied by is float32 already. Each sum takes one product after the other, whatever the tile.

#pragma once

#include "attention.h"

namespace {

typedef float Factor;

static inline void store_factors(Factor* to, Vec v) { store(to, v); }

// Queries are widened once for all keys they walk over.
struct Queries {
  alignas(64) float wide[kRows * kMaxHead];

  const Factor* query(const bf16* from, int place, int head) {
    float* to = wide + place * head;
    for (int h = 0; h < head; h += 16) store(to + h, load16(from + h));
    return to;
  }
};

// What rows fill registers with: six by two vectors, three by four, one by eight.
template <int MR>
constexpr int kWide = MR >= 4 ? 2 : MR >= 2 ? 4 : 8;

// acc[i][v] += a(i, 0) * first of the pairs of b[v] + a(i, 1) * second of them.
template <int MR, int NV, typename A>
inline void add_pairs(__m256 (&acc)[MR][NV], A&& a, const __m256i (&b)[NV]) {
  for (int e = 0; e < 2; e++) {
    __m256 wide[NV];
    for (int v = 0; v < NV; v++)
      wide[v] = (__m256)(e ? _mm256_and_si256(b[v], _mm256_set1_epi32(0xFFFF0000)) : _mm256_slli_epi32(b[v], 16));
    for (int i = 0; i < MR; i++) {
      __m256 by = _mm256_broadcast_ss(a(i, e));
      for (int v = 0; v < NV; v++) acc[i][v] = _mm256_fmadd_ps(by, wide[v], acc[i][v]);
    }
  }
}

template <int MR, int NC>
void scores(const Factor* const* q, int head, const bf16* const* keys, Scores* s) {
  __m256 acc[MR][2 * NC];
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < 2 * NC; v++) acc[i][v] = _mm256_setzero_ps();
  for (int h = 0; h < head / 2; h++) {
    __m256i k[2 * NC];
    for (int v = 0; v < 2 * NC; v++) k[v] = _mm256_loadu_si256((const __m256i*)(keys[v / 2] + 32 * h + 16 * (v % 2)));
    add_pairs(acc, [&](int i, int e) { return q[i] + 2 * h + e; }, k);
  }
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < 2 * NC; v++) _mm256_store_ps(s[i] + 8 * v, acc[i][v]);
}

template <int MR>
inline void all_scores(const Factor* const* q, int head, const bf16* const* keys, int cells, Scores* s) {
  constexpr int NC = kWide<MR> / 2;
  int c = 0;
  for (; c + NC <= cells; c += NC) scores<MR, NC>(q, head, keys + c, (Scores*)(&s[0][kCell * c]));
  for (; c < cells; c++) scores<MR, 1>(q, head, keys + c, (Scores*)(&s[0][kCell * c]));
}

template <int MR, int NV>
void gather(const Scores* p, const bf16* const* values, int cells, int head, int first, const float* shrink,
            float* acc_rows) {
  __m256 acc[MR][NV];
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < NV; v++)
      acc[i][v] = _mm256_mul_ps(_mm256_load_ps(acc_rows + i * head + first + 8 * v), _mm256_set1_ps(shrink[i]));
  for (int c = 0; c < cells; c++)
    for (int pair = 0; pair < kCell / 2; pair++) {
      const bf16* row = values[c] + 2 * (pair * head + first);
      __m256i x[NV];
      for (int v = 0; v < NV; v++) x[v] = _mm256_loadu_si256((const __m256i*)(row + 16 * v));
      add_pairs(acc, [&](int i, int e) { return p[i] + kCell * c + 2 * pair + e; }, x);
    }
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < NV; v++) _mm256_store_ps(acc_rows + i * head + first + 8 * v, acc[i][v]);
}

template <int MR>
inline void all_values(const Scores* p, const bf16* const* values, int cells, int head, const float* shrink,
                       float* acc) {
  constexpr int NV = kWide<MR>;
  int h = 0;
  for (; h + 8 * NV <= head; h += 8 * NV) gather<MR, NV>(p, values, cells, head, h, shrink, acc);
  for (; h < head; h += 16) gather<MR, 2>(p, values, cells, head, h, shrink, acc);
}

}  // namespace
