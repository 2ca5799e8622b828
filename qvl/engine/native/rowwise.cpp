// What is done to each row between the products: norm, rotation, activations. Computed in float32, rounded once (the norm
// twice, as the model writes it: the normalised row, then its product with the weight).

#include <cmath>

#include "common.h"

namespace {

constexpr float kLog2e = 1.44269504f;

inline __mmask16 first(int64_t count) { return count >= 16 ? 0xFFFF : (1 << count) - 1; }

// x * sigmoid(rate * x)
inline __m512 gated(__m512 x, float rate) {
  __m512 e = exp2_16(_mm512_mul_ps(x, _mm512_set1_ps(-rate * kLog2e)));
  return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

}  // namespace

extern "C" void qvl_rms_norm(const bf16* x, const bf16* weight, bf16* out, int64_t rows, int64_t width, float eps,
                             int threads) {
#pragma omp parallel for num_threads(rows > 16 ? threads : 1)
  for (int64_t r = 0; r < rows; r++) {
    const bf16* from = x + r * width;
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
      __m512 v = load16_first(from + i, first(width - i));
      total = _mm512_fmadd_ps(v, v, total);
    }
    __m512 by = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(total) / width + eps));
    for (int64_t i = 0; i < width; i += 16) {
      __mmask16 m = first(width - i);
      __m512 v = round16(_mm512_mul_ps(load16_first(from + i, m), by));
      store16_first(out + r * width + i, _mm512_mul_ps(v, load16_first(weight + i, m)), m);
    }
  }
}

// Turns channels (j, j + head / 2) of `heads` heads per row, in place.
extern "C" void qvl_rotate(bf16* x, int64_t stride, const float* cos, const float* sin, int64_t rows, int64_t heads,
                           int64_t head, int threads) {
  int64_t half = head / 2;
#pragma omp parallel for num_threads(rows > 16 ? threads : 1)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t n = 0; n < heads; n++) {
      bf16* a = x + r * stride + n * head;
      for (int64_t i = 0; i < half; i += 16) {
        __mmask16 m = first(half - i);
        __m512 p = load16_first(a + i, m), q = load16_first(a + half + i, m);
        __m512 c = _mm512_maskz_loadu_ps(m, cos + r * half + i), s = _mm512_maskz_loadu_ps(m, sin + r * half + i);
        store16_first(a + i, _mm512_fmsub_ps(p, c, _mm512_mul_ps(q, s)), m);
        store16_first(a + half + i, _mm512_fmadd_ps(q, c, _mm512_mul_ps(p, s)), m);
      }
    }
}

// out = silu(gate) * up; a row holds the gates, then the ups.
extern "C" void qvl_swiglu(const bf16* gate_up, bf16* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(rows > 4 ? threads : 1)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < width; i += 16) {
      __mmask16 m = first(width - i);
      const bf16* from = gate_up + 2 * r * width + i;
      __m512 v = _mm512_mul_ps(gated(load16_first(from, m), 1.0f), load16_first(from + width, m));
      store16_first(out + r * width + i, v, m);
    }
}

// x * sigmoid(1.702 x), in place.
extern "C" void qvl_quick_gelu(bf16* x, int64_t count, int threads) {
#pragma omp parallel for num_threads(count > 1 << 14 ? threads : 1)
  for (int64_t i = 0; i < count; i += 16) {
    __mmask16 m = first(count - i);
    store16_first(x + i, gated(load16_first(x + i, m), 1.702f), m);
  }
}
