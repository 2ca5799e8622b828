// What all kernels share: bfloat16 in and out, float32 between, sums in one fixed order.
//
// Every kernel computes a row from that row alone, in an order that depends neither on how many rows there are nor on
// the number of threads. So a row's result is the same to the last bit, alone and among others.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#ifdef __AVX512BF16__
#include "avx512.h"
#else
#include "avx2.h"
#endif

// Weights that come next are called for into the second cache: the first has room for few lines under way, and those
// wanted at once would wait behind them.
constexpr auto kAhead = _MM_HINT_T1;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
static Buffer<T> make_buffer(int64_t count) {
  return Buffer<T>((T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
}

static inline float widen1(bf16 v) {
  uint32_t bits = (uint32_t)v << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
