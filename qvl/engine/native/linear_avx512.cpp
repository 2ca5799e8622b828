// out[m, n] = scale[n] * sum over k of x[m, k] * w[n, k] (+ bias[n]): weights as bfloat16, 8 or 4 bit integers.
//
// Weights stay as they lie in the model, one output after the other. A tile is up to six rows of x against four rows of
// w, or up to twelve against fewer; each of its sums is one vector of 16 partial sums that takes 32 products at a time,
// first to last, whatever the tile. With few rows of x this reads the weights once, at the speed of memory; with many
// the tiles keep both operands near the processor.
//
// Integers become bfloat16 on the way: in registers while there are few rows of x, into a buffer once for all rows
// otherwise. Either way the products are the same.

#include <type_traits>

#include "common.h"

namespace {

constexpr int kRows = 6;            // of x in a tile of four outputs
constexpr int kMostRows = 12;       // of x in any tile
constexpr int kFewRows = 8;         // of x that integers are ever unpacked for in registers
constexpr int kStreamRows = 24;     // of x up to which weights come from memory faster than they are used
constexpr int64_t kNear = 1 << 20;  // bytes of bfloat16 weights that all rows of x meet before the next ones do

enum Kind { kBf16 = 0, kInt8 = 1, kInt4 = 2 };

struct Weights {
  const uint8_t* rows;
  const bf16* scales;  // 4 bit: per group of each row
  const float* row_scales;  // 8 bit: per row
  int64_t group, row_bytes, n, k;
};

// ---------------------------------------------------------------- integers to bfloat16

// 8 bit: sign and magnitude. 64 numbers a block, in the order in which interleaving bytes leaves them:
// place 16 L + j holds number 8 L + j (j < 8) or 32 + 8 L + j - 8.
struct Int8 {
  static constexpr int kBlock = 64;
  static constexpr int kParts = 2;
  static constexpr int kFew = 8;  // rows of x up to which unpacking in registers is faster than in a buffer
  __m512i low[2], high[2];  // bytes of the bfloat16 numbers 0 .. 127

  Int8(const Weights&) {
    alignas(64) uint8_t l[128], h[128];
    for (int i = 0; i < 128; i++) {
      bf16 v = narrow1((float)i);
      l[i] = v & 255;
      h[i] = v >> 8;
    }
    for (int t = 0; t < 2; t++) {
      low[t] = _mm512_load_si512(l + 64 * t);
      high[t] = _mm512_load_si512(h + 64 * t);
    }
  }
  inline void unpack(const uint8_t* row, const bf16*, int64_t block, __m512bh* out) const {
    __m512i b = _mm512_loadu_si512(row + 64 * block);
    __m512i l = _mm512_permutex2var_epi8(low[0], b, low[1]);
    __m512i h = _mm512_permutex2var_epi8(high[0], b, high[1]);
    h = _mm512_ternarylogic_epi32(h, b, _mm512_set1_epi8((char)0x80), 0xF8);  // h | (b & sign)
    out[0] = (__m512bh)_mm512_unpacklo_epi8(l, h);
    out[1] = (__m512bh)_mm512_unpackhi_epi8(l, h);
  }
};

// 4 bit: code c stands for (c - 8) * scale of its group. 128 numbers a block of 32 words: bits 4 j .. 4 j + 3 of word i
// are the code of number 32 j + i.
struct Int4 {
  static constexpr int kBlock = 128;
  static constexpr int kParts = 4;
  static constexpr int kFew = 4;
  int per_table;  // parts of a block that share a scale
  __m512 codes;

  Int4(const Weights& w) : per_table((int)w.group / 32) {
    codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  }
  inline __m512i table(bf16 scale) const {
    __m256i values = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(codes, _mm512_set1_ps(widen1(scale))));
    return _mm512_broadcast_i64x4(values);  // twice, so that the fifth bit of a word does not matter
  }
  inline void unpack(const uint8_t* row, const bf16* scales, int64_t block, __m512bh* out) const {
    __m512i b = _mm512_loadu_si512(row + 64 * block);
    const bf16* s = scales + block * (kParts / per_table);
    __m512i t[4];
    t[0] = table(s[0]);
    t[1] = per_table > 1 ? t[0] : table(s[1]);
    t[2] = per_table > 2 ? t[0] : table(s[2 / per_table]);
    t[3] = per_table > 1 ? t[2] : table(s[3]);
    out[0] = (__m512bh)_mm512_permutexvar_epi16(b, t[0]);
    out[1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(b, 4), t[1]);
    out[2] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(b, 8), t[2]);
    out[3] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(b, 12), t[3]);
  }
};

// ---------------------------------------------------------------- a tile

struct Output {
  void* out;
  int64_t stride;
  bool wide;  // float32
  const float* scales;
  const bf16* bias;

  // Sums of row m, outputs n .. n + count - 1.
  inline void put(int64_t m, int64_t n, int count, __m128 s) const {
    __mmask8 mask = (1 << count) - 1;
    if (scales) s = _mm_mul_ps(s, _mm_maskz_loadu_ps(mask, scales + n));
    if (bias) {
      __m128i b = _mm_cvtepu16_epi32(_mm_maskz_loadu_epi16(mask, bias + n));
      s = _mm_add_ps(s, _mm_castsi128_ps(_mm_slli_epi32(b, 16)));
    }
    if (wide)
      _mm_mask_storeu_ps((float*)out + m * stride + n, mask, s);
    else
      _mm_mask_storeu_epi16((bf16*)out + m * stride + n, mask, (__m128i)_mm_cvtneps_pbh(s));
  }
};

template <int MR, int NW>
inline void finish(const __m512 (&acc)[MR][NW], const Output& to, int64_t m, int64_t n, int count) {
  for (int i = 0; i < MR; i++) {
    const __m512* a = acc[i];
    to.put(m + i, n, count, sum4(a[0], a[1 % NW], a[2 % NW], a[3 % NW]));
  }
}

// Outputs of a tile: as many as leave room in the registers for sums, weights and a row of x.
constexpr int outputs_beside(int rows) { return rows <= kRows ? 4 : rows <= 8 ? 3 : 2; }

// With Ahead, the next rows of w are called for meanwhile.
template <int MR, bool Ahead>
void tile(const bf16* x, int64_t x_stride, const bf16* const* w, int64_t k, const Output& to, int64_t m, int64_t n,
          int count) {
  constexpr int NW = outputs_beside(MR);
  __m512 acc[MR][NW];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NW; j++) acc[i][j] = _mm512_setzero_ps();
  int64_t at = 0;
  for (; at + 32 <= k; at += 32) {
    __m512bh b[NW];
    for (int j = 0; j < NW; j++) {
      b[j] = load(w[j] + at);
      if (Ahead) _mm_prefetch((const char*)(w[j] + NW * k + at), kAhead);
    }
    for (int i = 0; i < MR; i++) {
      __m512bh a = load(x + i * x_stride + at);
      for (int j = 0; j < NW; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], a, b[j]);
    }
  }
  if (int rest = (int)(k - at)) {
    __m512bh b[NW];
    for (int j = 0; j < NW; j++) b[j] = load_first(w[j] + at, rest);
    for (int i = 0; i < MR; i++) {
      __m512bh a = load_first(x + i * x_stride + at, rest);
      for (int j = 0; j < NW; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], a, b[j]);
    }
  }
  finish<MR, NW>(acc, to, m, n, count);
}

// Up to four rows of x against four of w, up to eight against two: what fits into the registers.
template <int MR, typename Int>
void tile_packed(const bf16* x, int64_t x_stride, const uint8_t* const (&w)[4], const bf16* const (&scales)[4],
                 const Int& integer, int64_t k, int64_t ahead, const Output& to, int64_t n, int count) {
  constexpr int NW = MR <= 4 ? 4 : 2;
  for (int first = 0; first < count; first += NW) {
    __m512 acc[MR][NW];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NW; j++) acc[i][j] = _mm512_setzero_ps();
    for (int64_t block = 0; block < k / Int::kBlock; block++)
      for (int j = 0; j < NW; j++) {
        __m512bh b[Int::kParts];
        _mm_prefetch((const char*)(w[first + j] + 64 * block + ahead), kAhead);
        integer.unpack(w[first + j], scales[first + j], block, b);
        for (int i = 0; i < MR; i++)
          for (int part = 0; part < Int::kParts; part++)
            acc[i][j] = _mm512_dpbf16_ps(acc[i][j], load(x + i * x_stride + block * Int::kBlock + 32 * part), b[part]);
      }
    finish<MR, NW>(acc, to, 0, n + first, std::min(NW, count - first));
  }
}

// ---------------------------------------------------------------- all rows against a block of weights

template <typename F>
inline void by_rows(int64_t rows, F&& f) {
  switch (rows) {
    case 1: f(std::integral_constant<int, 1>()); break;
    case 2: f(std::integral_constant<int, 2>()); break;
    case 3: f(std::integral_constant<int, 3>()); break;
    case 4: f(std::integral_constant<int, 4>()); break;
    case 5: f(std::integral_constant<int, 5>()); break;
    case 6: f(std::integral_constant<int, 6>()); break;
    case 7: f(std::integral_constant<int, 7>()); break;
    case 8: f(std::integral_constant<int, 8>()); break;
    case 9: f(std::integral_constant<int, 9>()); break;
    case 10: f(std::integral_constant<int, 10>()); break;
    case 11: f(std::integral_constant<int, 11>()); break;
    default: f(std::integral_constant<int, kMostRows>());
  }
}

// w: `count` rows of bfloat16, outputs n0 ...
void rows_against(const bf16* x, int64_t x_stride, int64_t rows, const bf16* w, int64_t k, const Output& to, int64_t n0,
                  int64_t count, bool stream) {
  int64_t most = rows <= kStreamRows ? kMostRows : kRows;
  int64_t tiles = (rows + most - 1) / most, step = (rows + tiles - 1) / tiles, wide = outputs_beside((int)step);
  auto one = [&](int64_t m, int64_t j, bool ahead) {
    const bf16* own[4];
    for (int i = 0; i < 4; i++) own[i] = w + std::min(j + i, count - 1) * k;
    int wanted = (int)std::min(wide, count - j);
    by_rows(std::min(step, rows - m), [&](auto mr) {
      if (ahead)
        tile<mr.value, true>(x + m * x_stride, x_stride, own, k, to, m, n0 + j, wanted);
      else
        tile<mr.value, false>(x + m * x_stride, x_stride, own, k, to, m, n0 + j, wanted);
    });
  };
  if (rows <= kStreamRows) {
    for (int64_t j = 0; j < count; j += wide)
      for (int64_t m = 0; m < rows; m += step) one(m, j, stream && m == 0);
  } else {
    for (int64_t m = 0; m < rows; m += step)
      for (int64_t j = 0; j < count; j += wide) one(m, j, false);
  }
}

void run_bf16(const bf16* x, int64_t x_stride, int64_t rows, const Weights& w, const Output& to, int threads) {
  const bf16* all = (const bf16*)w.rows;
  int64_t block = std::max<int64_t>(8, std::min<int64_t>(96, kNear / (2 * w.k))) / 4 * 4;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t n0 = 0; n0 < w.n; n0 += block)
    rows_against(x, x_stride, rows, all + n0 * w.k, w.k, to, n0, std::min(block, w.n - n0), true);
}

template <typename Int>
void run_packed(const bf16* x, int64_t x_stride, int64_t rows, const Weights& w, const Output& to, int threads) {
  bool few = rows <= Int::kFew;
  int64_t block = few ? 64 : rows <= kStreamRows ? 12 : std::max<int64_t>(4, std::min<int64_t>(96, kNear / (4 * w.k))) / 4 * 4;
  int64_t per_row = w.scales ? w.k / w.group : 0;
#pragma omp parallel num_threads(threads)
  {
    Int integer(w);
    Buffer<bf16> buffer = make_buffer<bf16>(few ? 1 : block * w.k);
#pragma omp for schedule(dynamic, 1)
    for (int64_t n0 = 0; n0 < w.n; n0 += block) {
      int64_t count = std::min(block, w.n - n0);
      if (!few) {
        for (int64_t j = 0; j < count; j++) {
          const uint8_t* row = w.rows + (n0 + j) * w.row_bytes;
          for (int64_t b = 0; b < w.k / Int::kBlock; b++) {
            _mm_prefetch((const char*)(row + 64 * b + 4 * w.row_bytes), kAhead);
            integer.unpack(row, w.scales + (n0 + j) * per_row, b,
                           (__m512bh*)(buffer.get() + j * w.k + b * Int::kBlock));
          }
        }
        rows_against(x, x_stride, rows, buffer.get(), w.k, to, n0, count, false);
        continue;
      }
      for (int64_t j = 0; j < count; j += 4) {
        const uint8_t* four[4];
        const bf16* scales[4];
        for (int i = 0; i < 4; i++) {
          int64_t n = n0 + std::min(j + i, count - 1);
          four[i] = w.rows + n * w.row_bytes;
          scales[i] = w.scales + n * per_row;
        }
        by_rows(rows, [&](auto mr) {
          if constexpr (mr.value <= Int::kFew)
            tile_packed<mr.value>(x, x_stride, four, scales, integer, w.k, 4 * w.row_bytes, to, n0 + j,
                                (int)std::min<int64_t>(4, count - j));
        });
      }
    }
  }
}

// ---------------------------------------------------------------- many rows of x

// Rows of x stand across here, in cells of 16: [k / 2][16 rows][2], against pairs of weights. So a sum is one number from
// the first pair to the last, and there is nothing to add up across a vector at the end.

constexpr int kAcross = 3;     // cells in a tile
constexpr int kAgainst = 8;    // outputs in a tile
constexpr int kCellRows = 16;

inline void put_cell(bf16* cell, const bf16* x, int64_t x_stride, int64_t rows, int64_t k) {
  int32_t* to = (int32_t*)cell;
  for (int r = 0; r < kCellRows; r++) {
    const bf16* row = x + r * x_stride;
    if (r < rows)
      for (int64_t p = 0; p < k / 2; p++) __builtin_memcpy(to + p * kCellRows + r, row + 2 * p, 4);
    else
      for (int64_t p = 0; p < k / 2; p++) to[p * kCellRows + r] = 0;
  }
}

// Two outputs of 16 rows each, rounded, side by side.
inline __m512i beside(__m512 low, __m512 high) {
  __m512i l = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
  __m512i h = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
  return _mm512_or_si512(l, _mm512_slli_epi32(h, 16));
}

template <int Lane>
inline void put_row(bf16* out, int64_t stride, __m512i rows, int row, int64_t count, __mmask8 wanted) {
  if (row < count) _mm_mask_storeu_epi16(out + row * stride, wanted, _mm512_extracti32x4_epi32(rows, Lane));
}

// `acc`: eight outputs of 16 rows, of which `count` are wanted.
inline void put_across(const __m512* acc, const bf16* bias, bf16* out, int64_t stride, int64_t count, int outputs) {
  __mmask8 wanted = (1 << outputs) - 1;
  __m512 sums[kAgainst];
  for (int j = 0; j < kAgainst; j++)
    sums[j] = bias && j < outputs ? _mm512_add_ps(acc[j], _mm512_set1_ps(widen1(bias[j]))) : acc[j];
  __m512i p0 = beside(sums[0], sums[1]), p1 = beside(sums[2], sums[3]);
  __m512i p2 = beside(sums[4], sums[5]), p3 = beside(sums[6], sums[7]);
  __m512i a = _mm512_unpacklo_epi32(p0, p1), b = _mm512_unpackhi_epi32(p0, p1);
  __m512i c = _mm512_unpacklo_epi32(p2, p3), d = _mm512_unpackhi_epi32(p2, p3);
  const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                           _mm512_unpackhi_epi64(b, d)};
  for (int i = 0; i < 4; i++) {  // lane L of vector i is row 4 L + i
    put_row<0>(out, stride, rows[i], i, count, wanted);
    put_row<1>(out, stride, rows[i], 4 + i, count, wanted);
    put_row<2>(out, stride, rows[i], 8 + i, count, wanted);
    put_row<3>(out, stride, rows[i], 12 + i, count, wanted);
  }
}

template <int NC>
void tile_across(const bf16* cells, const bf16* const (&w)[kAgainst], int64_t k, const bf16* bias, bf16* out,
                 int64_t stride, int64_t rows, int outputs) {
  __m512 acc[NC][kAgainst];
  for (int c = 0; c < NC; c++)
    for (int j = 0; j < kAgainst; j++) acc[c][j] = _mm512_setzero_ps();
  for (int64_t at = 0; at < k; at += 2) {
    if (at % 32 == 0)
      for (int j = 0; j < kAgainst; j++) _mm_prefetch((const char*)(w[j] + kAgainst * k + at), _MM_HINT_T0);
    __m512bh x[NC];
    for (int c = 0; c < NC; c++) x[c] = load(cells + (c * k / 2 + at / 2) * 2 * kCellRows);
    for (int j = 0; j < kAgainst; j++) {
      int pair;
      __builtin_memcpy(&pair, w[j] + at, 4);
      __m512bh b = (__m512bh)_mm512_set1_epi32(pair);
      for (int c = 0; c < NC; c++) acc[c][j] = _mm512_dpbf16_ps(acc[c][j], x[c], b);
    }
  }
  for (int c = 0; c < NC; c++)
    put_across(acc[c], bias, out + c * kCellRows * stride, stride, rows - c * kCellRows, outputs);
}

void run_across(const bf16* x, int64_t x_stride, int64_t rows, const bf16* w, const bf16* bias, bf16* out, int64_t n,
                int64_t k, int threads) {
  constexpr int64_t kBlock = kAcross * kCellRows;
  int64_t blocks = (rows + kBlock - 1) / kBlock, parts = std::max<int64_t>(1, 4 * threads / blocks);
  int64_t part = ((n + parts - 1) / parts + kAgainst - 1) / kAgainst * kAgainst;
#pragma omp parallel num_threads(threads)
  {
    Buffer<bf16> cells = make_buffer<bf16>(kBlock * k);
    int64_t held = -1;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < blocks * parts; task++) {
      int64_t block = task / parts, m = block * kBlock, count = std::min(kBlock, rows - m);
      int64_t n0 = task % parts * part, end = std::min(n, n0 + part), across = (count + kCellRows - 1) / kCellRows;
      if (held != block)
        for (int64_t c = 0; c < across; c++)
          put_cell(cells.get() + c * kCellRows * k, x + (m + c * kCellRows) * x_stride, x_stride, count - c * kCellRows,
                   k);
      held = block;
      for (int64_t j = n0; j < end; j += kAgainst) {
        const bf16* own[kAgainst];
        for (int i = 0; i < kAgainst; i++) own[i] = w + std::min(j + i, n - 1) * k;
        int wanted = (int)std::min<int64_t>(kAgainst, n - j);
        const bf16* b = bias ? bias + j : nullptr;
        bf16* to = out + m * n + j;
        switch (across) {
          case 1: tile_across<1>(cells.get(), own, k, b, to, n, count, wanted); break;
          case 2: tile_across<2>(cells.get(), own, k, b, to, n, count, wanted); break;
          default: tile_across<kAcross>(cells.get(), own, k, b, to, n, count, wanted);
        }
      }
    }
  }
}

}  // namespace

extern "C" void qvl_linear(int kind, const bf16* x, int64_t x_stride, int64_t rows, const void* weights,
                           const bf16* scales, const float* row_scales, int64_t group, const bf16* bias, void* out,
                           int64_t out_stride, int wide, int64_t n, int64_t k, int threads) {
  int64_t row_bytes = kind == kBf16 ? 2 * k : kind == kInt8 ? k : k / 2;
  Weights w{(const uint8_t*)weights, scales, row_scales, group, row_bytes, n, k};
  Output to{out, out_stride, wide != 0, row_scales, bias};
  if (kind == kBf16) run_bf16(x, x_stride, rows, w, to, threads);
  if (kind == kInt8) run_packed<Int8>(x, x_stride, rows, w, to, threads);
  if (kind == kInt4) run_packed<Int4>(x, x_stride, rows, w, to, threads);
}

// The same for bfloat16 weights where there are many rows of x, as a rule; sums in another order than above.
extern "C" void qvl_linear_many(const bf16* x, int64_t x_stride, int64_t rows, const bf16* w, const bf16* bias,
                                bf16* out, int64_t n, int64_t k, int threads) {
  run_across(x, x_stride, rows, w, bias, out, n, k, threads);
}
