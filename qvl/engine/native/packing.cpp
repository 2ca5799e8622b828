// Rounding bfloat16 weights to 8 or 4 bit integers, row by row. What is computed is said in packing.py, the twin; the
// orders inside a block are those that linear.cpp reads.

#include <cmath>

#include "common.h"

namespace {

constexpr int kBlock8 = 64, kBlock4 = 128;
constexpr float kShrinks[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f};

// Numbers at ... of a row, zeros beyond its end.
inline Vec take(const bf16* row, int64_t at, int64_t inputs) {
  return load16_first(row + at, first_or_none(inputs - at));
}

// The best scale of one group and its codes less 8.
bf16 fit(const float* values, int group, float* codes) {
  float most = 0;
  for (int i = 0; i < group; i++)
    if (std::fabs(values[i]) > std::fabs(most)) most = values[i];
  float best_error = INFINITY;
  bf16 best = 0;
  for (float shrink : kShrinks) {
    bf16 narrow = narrow1(most * (-shrink / 8));
    float scale = widen1(narrow);
    if (scale == 0) {
      std::fill(codes, codes + group, 0.0f);
      return narrow;
    }
    Vec by = all(scale), total = zeros();
    Vec found[kBlock4 / 16];
    for (int i = 0; i < group / 16; i++) {
      Vec v = load(values + 16 * i);
      Vec c = nearest(div(v, by));
      c = max(min(c, all(7)), all(-8));
      Vec off = sub(mul(c, by), v);
      total = mul_add(off, off, total);
      found[i] = c;
    }
    float error = sum_of(total);
    if (error < best_error) {
      best_error = error;
      best = narrow;
      for (int i = 0; i < group / 16; i++) store(codes + 16 * i, found[i]);
    }
  }
  return best;
}

}  // namespace

extern "C" void qvl_pack8(const bf16* weights, int64_t rows, int64_t inputs, int64_t padded, uint8_t* data,
                          float* scales, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    const bf16* row = weights + r * inputs;
    Vec most = zeros();
    for (int64_t i = 0; i < inputs; i += 16) most = max(most, abs(take(row, i, inputs)));
    float scale = std::max(largest_of(most) / 127, 1e-20f);
    scales[r] = scale;
    for (int64_t block = 0; block < padded; block += kBlock8) {
      alignas(64) int32_t integers[kBlock8];
      for (int i = 0; i < kBlock8; i += 16) {
        Vec v = nearest(div(take(row, block + i, inputs), all(scale)));
        store_integers(integers + i, v);
      }
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
          int v = integers[32 * half + i];
          data[r * padded + block + i / 8 * 16 + 8 * half + i % 8] = (uint8_t)(v < 0 ? 128 - v : v);
        }
    }
  }
}

extern "C" void qvl_pack4(const bf16* weights, int64_t rows, int64_t inputs, int64_t padded, int64_t group,
                          uint8_t* data, bf16* scales, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t block = 0; block < padded; block += kBlock4) {
      alignas(64) float values[kBlock4], codes[kBlock4];
      for (int i = 0; i < kBlock4; i += 16)
        store(values + i, take(weights + r * inputs, block + i, inputs));
      for (int i = 0; i < kBlock4; i += (int)group)
        scales[(r * padded + block + i) / group] = fit(values + i, (int)group, codes + i);
      uint8_t* to = data + (r * padded + block) / 2;
      for (int i = 0; i < 32; i++) {
        int c[4];
        for (int j = 0; j < 4; j++) c[j] = (int)codes[32 * j + i] + 8;
        to[2 * i] = (uint8_t)(c[0] | c[1] << 4);
        to[2 * i + 1] = (uint8_t)(c[2] | c[3] << 4);
      }
    }
}
