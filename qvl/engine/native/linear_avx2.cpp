// out[m, n] = scale[n] * sum over k of x[m, k] * w[n, k] (+ bias[n]), as linear_avx512.cpp, without its instructions.
//
// Everything is multiplied as float32. Sixteen numbers become two vectors, in the order in which interleaving leaves
// them: 0-3 and 8-11, then 4-7 and 12-15. A sum is made part by part along k. Each part is two vectors of partial sums,
// one of all first vectors and one of all second ones, that take their products first to last; they are added up and
// join what the parts before came to. The tile and where weights come from make no difference to that, so a row's
// result is the same in any company.
//
// A single row, and few rows against integers: weights are widened in registers, on their way from memory. Few rows
// against bfloat16: the same, three rows of x at a time. Many rows: four rows of weights are widened into a panel that
// stays in the first cache, and all rows of x in the second one meet it.

#include <type_traits>

#include "common.h"

namespace {

constexpr int64_t kPart = 1024;  // products in a part of a sum
constexpr int64_t kHalf = kPart / 2;
constexpr int64_t kRow = kPart + 16;  // floats of a row in a buffer: at a multiple of a page all rows share a few sets
constexpr int64_t kNear = 48;         // rows of x that meet a panel
constexpr int64_t kOutputs = 64;      // most outputs that one thread takes at a time
constexpr int kRows = 3;              // of x in a tile
constexpr int64_t kFewRows = 12;      // of x up to which bfloat16 is not worth a panel

enum Kind { kBf16 = 0, kInt8 = 1, kInt4 = 2 };

struct Weights {
  const uint8_t* rows;
  const bf16* scales;  // 4 bit: per group of each row
  int64_t group, row_bytes, n, k;

  const uint8_t* row(int64_t n) const { return rows + n * row_bytes; }
};

inline __m256i load32(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

inline __m256 low(__m256i v) { return (__m256)_mm256_unpacklo_epi16(_mm256_setzero_si256(), v); }

inline __m256 high(__m256i v) { return (__m256)_mm256_unpackhi_epi16(_mm256_setzero_si256(), v); }

// ---------------------------------------------------------------- a row of weights, widened block by block

struct Bf16 {
  static constexpr int kBlock = 16;
  static constexpr auto kHint = kAhead;
  static constexpr int kFew = 1;  // rows of x up to which widening in registers is faster than in a panel
  const bf16* row;

  Bf16(const Weights& w, int64_t n) : row((const bf16*)w.row(n)) {}
  const void* at(int64_t block) const { return row + 16 * block; }
  template <typename F>
  inline void widen(int64_t block, F&& take) const {
    __m256i v = load32(row + 16 * block);
    take(0, low(v));
    take(1, high(v));
  }
  // The last block of a row, if it is not whole.
  template <typename F>
  inline void widen_end(int64_t block, int64_t left, F&& take) const {
    bf16 some[16] = {0};
    __builtin_memcpy(some, row + 16 * block, 2 * left);
    Bf16(some).widen(0, take);
  }

 private:
  explicit Bf16(const bf16* row) : row(row) {}
};

// 8 bit: sign and magnitude; in a block of 64 place 16 L + j holds number 8 L + j (j < 8) or 32 + 8 L + j - 8. An
// integer moved to the upper end of 32 bits is 2^24 times as large, which the scale of its row makes up for.
struct Int8 {
  static constexpr int kBlock = 64;
  static constexpr auto kHint = kAhead;
  static constexpr int kFew = 3;
  static constexpr float kTooLarge = 1 << 24;
  const uint8_t* row;

  Int8(const Weights& w, int64_t n) : row(w.row(n)) {}
  const void* at(int64_t block) const { return row + 64 * block; }
  template <typename F>
  inline void widen(int64_t block, F&& take) const {
    const uint8_t* at = row + 64 * block;
    __m256i v[2];
    for (int i = 0; i < 2; i++) {
      __m256i b = load32(at + 32 * i);
      v[i] = _mm256_sign_epi8(_mm256_and_si256(b, _mm256_set1_epi8(127)), b);
    }
    for (int i = 0; i < 8; i++) take(i, fours(v[i / 2 % 2], i / 4 * 2 + i % 2));
  }

 private:
  // Four bytes of each half, at 4 i, as numbers.
  static inline __m256 fours(__m256i v, int i) {
    __m256i place = _mm256_broadcastsi128_si256(
        _mm_add_epi8(_mm_setr_epi32(0x00808080, 0x01808080, 0x02808080, 0x03808080), _mm_set1_epi32(4 * i << 24)));
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v, place));
  }
};

// Lower and upper bytes of the bfloat16 numbers (code - 8) * scale for every lower byte of a scale; its upper byte, sign
// and most of the exponent, is added to theirs. The last entry is for a scale of zero (or below 2^-126, which is no
// scale of a weight).
struct Tables {
  static constexpr int kZero = 256, kBase = 0x40;
  alignas(32) uint8_t lower_upper[kZero + 1][2][16] = {};

  Tables() {
    for (int b = 0; b < kZero; b++)
      for (int code = 0; code < 16; code++) {
        bf16 v = code == 8 ? kBase << 8 : narrow1((float)(code - 8) * widen1((bf16)(kBase << 8 | b)));
        lower_upper[b][0][code] = v & 255;
        lower_upper[b][1][code] = (v >> 8) - kBase;
      }
  }
  static const Tables& get() {
    static const Tables made;
    return made;
  }
};

struct Table {
  __m256i lower, upper;

  inline Table(const Tables& all, const bf16* scale) {
    const __m128i* entry = (const __m128i*)all.lower_upper[*scale & 0x7F80 ? *scale & 255 : Tables::kZero];
    __m256i but_eight = _mm256_setr_epi64x(-1, ~255LL, -1, ~255LL);  // code 8 stands for zero
    __m256i own = _mm256_and_si256(_mm256_set1_epi8(((const char*)scale)[1]), but_eight);
    lower = _mm256_broadcastsi128_si256(entry[0]);
    upper = _mm256_add_epi8(_mm256_broadcastsi128_si256(entry[1]), own);
  }
};

// 4 bit: code c stands for (c - 8) * scale of its group. 128 numbers a block of 32 words: bits 4 j .. 4 j + 3 of word i
// are the code of number 32 j + i.
template <int kGroup>
struct Int4 {
  static constexpr int kBlock = 128;
  static constexpr auto kHint = _MM_HINT_T0;  // a quarter faster here than kAhead
  static constexpr int kFew = 3;
  static constexpr int kTables = kBlock / kGroup;  // of a block
  const Tables& tables = Tables::get();
  const uint8_t* row;
  const bf16* scales;

  Int4(const Weights& w, int64_t n) : row(w.row(n)), scales(w.scales + n * (w.k / kGroup)) {}
  const void* at(int64_t block) const { return row + 64 * block; }
  template <typename F>
  inline void widen(int64_t block, F&& take) const {
    // Lower bytes (j = 0 and 1) of words 0-15 in even places, of 16-31 in odd ones; upper bytes the same.
    __m256i apart = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    __m256i a = _mm256_shuffle_epi8(load32(row + 64 * block), apart);
    __m256i b = _mm256_shuffle_epi8(load32(row + 64 * block + 32), apart);
    __m256i half[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
    const bf16* s = scales + block * kTables;
    for (int j = 0; j < 4; j++) {
      __m256i codes = _mm256_and_si256(j % 2 ? _mm256_srli_epi16(half[j / 2], 4) : half[j / 2], _mm256_set1_epi8(15));
      Table table(tables, s + j * kTables / 4);  // those that are the same are looked up once
      __m256i l = _mm256_shuffle_epi8(table.lower, codes), h = _mm256_shuffle_epi8(table.upper, codes);
      __m256i first = _mm256_unpacklo_epi8(l, h), second = _mm256_unpackhi_epi8(l, h);
      __m256i upper = _mm256_set1_epi32(0xFFFF0000);
      take(4 * j, (__m256)_mm256_slli_epi32(first, 16));
      take(4 * j + 1, (__m256)_mm256_slli_epi32(second, 16));
      take(4 * j + 2, (__m256)_mm256_and_si256(first, upper));
      take(4 * j + 3, (__m256)_mm256_and_si256(second, upper));
    }
  }
};

// ---------------------------------------------------------------- a tile

// The sums of four vectors, side by side.
inline __m128 sum4(__m256 a, __m256 b, __m256 c, __m256 d) {
  __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

// Adds what a part came to, of MR rows of x and four outputs.
template <int MR>
inline void finish(const __m256 (&acc)[MR][4][2], float* sums) {
  for (int i = 0; i < MR; i++) {
    float* to = sums + i * kOutputs;
    __m256 a[4];
    for (int j = 0; j < 4; j++) a[j] = _mm256_add_ps(acc[i][j][0], acc[i][j][1]);
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sum4(a[0], a[1], a[2], a[3])));
  }
}

// Calls f(place in the part, how a row is widened there) block by block.
template <typename W, typename F>
inline void walk(int64_t first, int64_t count, F&& f) {
  int64_t at = 0;
  for (; at + W::kBlock <= count; at += W::kBlock)
    f(at, [&](const W& row, auto&& take) { row.widen((first + at) / W::kBlock, take); });
  if constexpr (std::is_same_v<W, Bf16>)
    if (at < count) f(at, [&](const W& row, auto&& take) { row.widen_end((first + at) / 16, count - at, take); });
}

// Weights are widened in registers, once for all rows of x. x begins at the part, the rows of w at their beginning; the
// next four rows of w, `ahead`, are called for meanwhile.
template <int MR, typename W>
void tile(const float* x, const W (&w)[4], int64_t first, int64_t count, int64_t ahead, float* sums) {
  __m256 acc[MR][4][2];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < 4; j++) acc[i][j][0] = acc[i][j][1] = _mm256_setzero_ps();
  walk<W>(first, count, [&](int64_t at, auto&& widen) {
    for (int j = 0; j < 4; j++) {
      _mm_prefetch((const char*)w[j].at((first + at) / W::kBlock) + ahead, W::kHint);
      widen(w[j], [&](int v, __m256 b) {
        for (int i = 0; i < MR; i++) {
          __m256 a = _mm256_load_ps(x + i * kRow + v % 2 * kHalf + at / 2 + v / 2 * 8);
          acc[i][j][v % 2] = _mm256_fmadd_ps(a, b, acc[i][j][v % 2]);
        }
      });
    }
  });
  finish(acc, sums);
}

// Four rows of weights in a panel: first vectors, then second ones.
struct Panel {
  const float* rows;

  inline __m256 get(int v, int j, int64_t at) const { return _mm256_load_ps(rows + j * kRow + v * kHalf + at); }
};

// Four rows of bfloat16 weights from the beginning of a part, which is a number of whole sixteens.
struct Bf16Rows {
  const bf16* rows[4];
  int64_t ahead;  // where the next four lie

  inline __m256 get(int v, int j, int64_t at) const {
    const bf16* from = rows[j] + 2 * at;
    if (v == 1) return high(load32(from));
    _mm_prefetch((const char*)(from + ahead), kAhead);
    return low(load32(from));
  }
};

// Weights are widened for up to three rows of x at a time, or were so before: first all first vectors, then the second
// ones, as there are registers for one sum of each.
template <int MR, typename W>
void tile_in_two(const float* x, const W& w, int64_t count, float* sums) {
  __m256 acc[MR][4][2];
  auto half = [&](auto v) {
    __m256 own[MR][4];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < 4; j++) own[i][j] = _mm256_setzero_ps();
    for (int64_t at = 0; at < (count + 15) / 16 * 8; at += 8) {
      __m256 a[MR];
      for (int i = 0; i < MR; i++) a[i] = _mm256_load_ps(x + i * kRow + v * kHalf + at);
      for (int j = 0; j < 4; j++) {
        __m256 b = w.get(v, j, at);
        for (int i = 0; i < MR; i++) own[i][j] = _mm256_fmadd_ps(a[i], b, own[i][j]);
      }
    }
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < 4; j++) acc[i][j][v] = own[i][j];
  };
  half(std::integral_constant<int, 0>());
  half(std::integral_constant<int, 1>());
  finish(acc, sums);
}

// ---------------------------------------------------------------- a block of rows against a block of outputs

// What one thread works with.
struct Room {
  Buffer<float> x, panel, sums;

  explicit Room(int64_t rows)
      : x(make_buffer<float>(std::min(rows, kNear) * kRow)),
        panel(make_buffer<float>(4 * kRow)),
        sums(make_buffer<float>(std::min(rows, kNear) * kOutputs)) {}
};

template <typename F>
inline void by_rows(int64_t rows, F&& f) {
  switch (rows) {
    case 1: f(std::integral_constant<int, 1>()); break;
    case 2: f(std::integral_constant<int, 2>()); break;
    default: f(std::integral_constant<int, kRows>());
  }
}

// Numbers first .. first + count - 1 of a row, filled up with zeros to whole sixteens.
inline void widen_row(const bf16* row, int64_t count, float* to) {
  for (int64_t at = 0; at < count; at += 16) {
    bf16 some[16] = {0};
    const bf16* from = row + at;
    if (count - at < 16) from = (const bf16*)__builtin_memcpy(some, from, 2 * (count - at));
    __m256i v = load32(from);
    _mm256_store_ps(to + at / 2, low(v));
    _mm256_store_ps(to + kHalf + at / 2, high(v));
  }
}

// All near rows of x against outputs j .. j + 3 of those from n0 on, in one part.
struct Four {
  const Weights& w;
  const Room& room;
  int64_t rows, step, n0, count, j, first, part;

  template <typename W>
  W row(int64_t i) const {
    return W(w, n0 + std::min(j + i, count - 1));
  }
  template <int kMost, typename F>
  void by_tiles(F&& f) const {
    for (int64_t m = 0; m < rows; m += step)
      by_rows(std::min(step, rows - m), [&](auto mr) {
        if constexpr (mr.value <= kMost) f(mr, room.x.get() + m * kRow, room.sums.get() + m * kOutputs + j);
      });
  }
  template <typename W>
  void in_registers() const {
    const W four[4] = {row<W>(0), row<W>(1), row<W>(2), row<W>(3)};
    by_tiles<W::kFew>([&](auto mr, const float* x, float* sums) {
      tile<mr.value>(x, four, first, part, 4 * w.row_bytes, sums);
    });
  }
  void as_they_lie() const {
    auto at = [&](int64_t i) { return row<Bf16>(i).row + first; };
    const Bf16Rows four{{at(0), at(1), at(2), at(3)}, 4 * w.k};
    by_tiles<kRows>([&](auto mr, const float* x, float* sums) { tile_in_two<mr.value>(x, four, part, sums); });
  }
  template <typename W>
  void by_panel() const {
    for (int64_t i = 0; i < 4; i++) {
      W own = row<W>(i);
      float* to = room.panel.get() + i * kRow;
      walk<W>(first, part, [&](int64_t at, auto&& widen) {
        _mm_prefetch((const char*)own.at((first + at) / W::kBlock) + 4 * w.row_bytes, W::kHint);
        widen(own, [&](int v, __m256 b) { _mm256_store_ps(to + v % 2 * kHalf + at / 2 + v / 2 * 8, b); });
      });
    }
    const Panel panel{room.panel.get()};
    by_tiles<kRows>([&](auto mr, const float* x, float* sums) { tile_in_two<mr.value>(x, panel, part, sums); });
  }
  template <typename W>
  void run() const {
    if (rows <= W::kFew)
      in_registers<W>();
    else if (std::is_same_v<W, Bf16> && rows <= kFewRows && part % 16 == 0)
      as_they_lie();
    else
      by_panel<W>();
  }
};

struct Output {
  void* out;
  int64_t stride;
  bool wide;  // float32
  const float* scales;
  const bf16* bias;

  void put(int64_t m, int64_t n, int64_t count, const float* sums) const {
    for (int64_t i = 0; i < count; i += 16) {
      Mask mask = first(count - i);
      Vec s = load(sums + i);
      if (scales) s = mul(s, mul(load_first(scales + n + i, mask), all(1 / Int8::kTooLarge)));
      if (bias) s = add(s, load16_first(bias + n + i, mask));
      int64_t to = m * stride + n + i;
      if (wide)
        store_first((float*)out + to, s, mask);
      else
        store16_first((bf16*)out + to, s, mask);
    }
  }
};

template <typename W>
void run(const bf16* x, int64_t x_stride, int64_t rows, const Weights& w, const Output& to, int threads) {
  int64_t block = std::max<int64_t>(8, std::min(kOutputs, w.n / (4 * threads) / 8 * 8));
#pragma omp parallel num_threads(threads)
  {
    Room room(rows);
#pragma omp for schedule(dynamic, 1)
    for (int64_t n0 = 0; n0 < w.n; n0 += block) {
      int64_t outputs = std::min(block, w.n - n0);
      for (int64_t m0 = 0; m0 < rows; m0 += kNear) {
        int64_t near = std::min(kNear, rows - m0), tiles = (near + kRows - 1) / kRows, step = (near + tiles - 1) / tiles;
        std::fill(room.sums.get(), room.sums.get() + near * kOutputs, 0.0f);
        for (int64_t k0 = 0; k0 < w.k; k0 += kPart) {
          int64_t part = std::min(kPart, w.k - k0);
          for (int64_t m = 0; m < near; m++) widen_row(x + (m0 + m) * x_stride + k0, part, room.x.get() + m * kRow);
          for (int64_t j = 0; j < outputs; j += 4) Four{w, room, near, step, n0, outputs, j, k0, part}.run<W>();
        }
        for (int64_t m = 0; m < near; m++) to.put(m0 + m, n0, outputs, room.sums.get() + m * kOutputs);
      }
    }
  }
}

}  // namespace

extern "C" void qvl_linear(int kind, const bf16* x, int64_t x_stride, int64_t rows, const void* weights,
                           const bf16* scales, const float* row_scales, int64_t group, const bf16* bias, void* out,
                           int64_t out_stride, int wide, int64_t n, int64_t k, int threads) {
  int64_t row_bytes = kind == kBf16 ? 2 * k : kind == kInt8 ? k : k / 2;
  Weights w{(const uint8_t*)weights, scales, group, row_bytes, n, k};
  Output to{out, out_stride, wide != 0, row_scales, bias};
  if (kind == kBf16) run<Bf16>(x, x_stride, rows, w, to, threads);
  if (kind == kInt8) run<Int8>(x, x_stride, rows, w, to, threads);
  if (kind == kInt4 && group == 32) run<Int4<32>>(x, x_stride, rows, w, to, threads);
  if (kind == kInt4 && group == 64) run<Int4<64>>(x, x_stride, rows, w, to, threads);
  if (kind == kInt4 && group == 128) run<Int4<128>>(x, x_stride, rows, w, to, threads);
}

// There is no better way for many rows of x.
extern "C" void qvl_linear_many(const bf16* x, int64_t x_stride, int64_t rows, const bf16* w, const bf16* bias,
                                bf16* out, int64_t n, int64_t k, int threads) {
  qvl_linear(kBf16, x, x_stride, rows, w, nullptr, nullptr, 0, bias, out, n, 0, n, k, threads);
}
