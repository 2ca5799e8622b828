// The products of attention by AVX2 and FMA: keys and values are widened to float32 in registers, once for a tile of
// rows; what they are multiplied by is float32 already. Each sum takes one product after the other, whatever the tile.

#pragma once

#include <type_traits>

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

// acc[i][v] += a(i) * the first (E = 0) or second ones of the pairs of b(v). First ones of all pairs come before second
// ones: taking both at once needs more registers than there are.
template <int E, int MR, int NV, typename A, typename B>
inline void add(__m256 (&acc)[MR][NV], A&& a, B&& b) {
  __m256 wide[NV];
  for (int v = 0; v < NV; v++) {
    __m256i pairs = _mm256_loadu_si256((const __m256i*)b(v));
    wide[v] = (__m256)(E ? _mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF0000)) : _mm256_slli_epi32(pairs, 16));
  }
  for (int i = 0; i < MR; i++) {
    __m256 by = _mm256_broadcast_ss(a(i));
    for (int v = 0; v < NV; v++) acc[i][v] = _mm256_fmadd_ps(by, wide[v], acc[i][v]);
  }
}

template <typename F>
inline void twice(F&& f) {
  f(std::integral_constant<int, 0>());
  f(std::integral_constant<int, 1>());
}

template <int MR, int NC>
void scores(const Factor* const* q, int head, const bf16* const* keys, Scores* s) {
  __m256 acc[MR][2 * NC];
  for (int i = 0; i < MR; i++)
    for (int v = 0; v < 2 * NC; v++) acc[i][v] = _mm256_setzero_ps();
  twice([&](auto e) {
    for (int h = 0; h < head / 2; h++)
      add<e>(acc, [&](int i) { return q[i] + 2 * h + e; }, [&](int v) { return keys[v / 2] + 32 * h + 16 * (v % 2); });
  });
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
  twice([&](auto e) {
    for (int c = 0; c < cells; c++)
      for (int pair = 0; pair < kCell / 2; pair++) {
        const bf16* row = values[c] + 2 * (pair * head + first);
        add<e>(acc, [&](int i) { return p[i] + kCell * c + 2 * pair + e; }, [&](int v) { return row + 16 * v; });
      }
  });
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
