// What is done to each row between the products: norm, rotation, activations. Computed in float32, rounded once (the norm
// twice, as the model writes it: the normalised row, then its product with the weight).

#include <cmath>

#include "common.h"

namespace {

constexpr float kLog2e = 1.44269504f;

// x * sigmoid(rate * x)
inline Vec gated(Vec x, float rate) {
  Vec e = exp2_16(mul(x, all(-rate * kLog2e)));
  return div(x, add(e, all(1.0f)));
}

}  // namespace

extern "C" void qvl_rms_norm(const bf16* x, const bf16* weight, bf16* out, int64_t rows, int64_t width, float eps,
                             int threads) {
#pragma omp parallel for num_threads(rows > 16 ? threads : 1)
  for (int64_t r = 0; r < rows; r++) {
    const bf16* from = x + r * width;
    Vec total = zeros();
    for (int64_t i = 0; i < width; i += 16) {
      Vec v = load16_first(from + i, first(width - i));
      total = mul_add(v, v, total);
    }
    Vec by = all(1.0f / std::sqrt(sum_of(total) / width + eps));
    for (int64_t i = 0; i < width; i += 16) {
      Mask m = first(width - i);
      Vec v = round16(mul(load16_first(from + i, m), by));
      store16_first(out + r * width + i, mul(v, load16_first(weight + i, m)), m);
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
        Mask m = first(half - i);
        Vec p = load16_first(a + i, m), q = load16_first(a + half + i, m);
        Vec c = load_first(cos + r * half + i, m), s = load_first(sin + r * half + i, m);
        store16_first(a + i, mul_sub(p, c, mul(q, s)), m);
        store16_first(a + half + i, mul_add(q, c, mul(p, s)), m);
      }
    }
}

// out = silu(gate) * up; a row holds the gates, then the ups.
extern "C" void qvl_swiglu(const bf16* gate_up, bf16* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(rows > 4 ? threads : 1)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < width; i += 16) {
      Mask m = first(width - i);
      const bf16* from = gate_up + 2 * r * width + i;
      Vec v = mul(gated(load16_first(from, m), 1.0f), load16_first(from + width, m));
      store16_first(out + r * width + i, v, m);
    }
}

// x * sigmoid(1.702 x), in place.
extern "C" void qvl_quick_gelu(bf16* x, int64_t count, int threads) {
#pragma omp parallel for num_threads(count > 1 << 14 ? threads : 1)
  for (int64_t i = 0; i < count; i += 16) {
    Mask m = first(count - i);
    store16_first(x + i, gated(load16_first(x + i, m), 1.702f), m);
  }
}
