// Attention over keys and values that lie in cells of 16 keys: keys stand across, so that 16 scores are one vector, and
// values in pairs, so that two keys are one product.
//
//     key cell    [H / 2][16 keys][2]         value cell  [8 pairs of keys][H][2]
//
// A block of queries walks over blocks of 256 keys, first to last, and keeps a running maximum and sum of each row. A
// row's order of sums follows from its keys alone: it does not matter which queries are computed beside it, whether its
// past was computed just now or long ago, or where its pages lie.

#include <cmath>
#include <type_traits>

#ifdef __AVX512BF16__
#include "attention_avx512.h"
#else
#include "attention_avx2.h"
#endif

namespace {

constexpr float kLog2e = 1.44269504f;

// Up to kRows queries: where each lies, how many keys it sees, and what has come together for it.
struct Rows : Queries {
  const Factor* q[kRows];
  bf16* out[kRows];
  int64_t sees[kRows];
  int count = 0;
  float top[kRows], sum[kRows];
  alignas(64) float acc[kRows * kMaxHead];

  void add(const bf16* from, bf16* to, int64_t keys, int head) {
    q[count] = query(from, count, head);
    out[count] = to;
    sees[count++] = keys;
  }
};

inline int clamp_cells(int64_t keys) { return (int)std::min<int64_t>(kBlock, (keys + kCell - 1) / kCell); }

// exp of the scores, less the largest so far, as factors; returns by what earlier sums shrink.
inline float weigh(const float* s, int cells, int64_t visible, float scale, float& top, float& sum, Factor* p) {
  Vec best = all(-INFINITY);
  for (int c = 0; c < cells; c++) {
    Mask seen = first_or_none(visible - kCell * c);
    best = max_where(seen, best, load(s + kCell * c));
  }
  float now = std::max(top, largest_of(best) * scale);
  Vec offset = all(now), factor = all(scale), total = zeros();
  for (int c = 0; c < cells; c++) {
    Mask seen = first_or_none(visible - kCell * c);
    Vec e = exp2_16(mul_sub(load(s + kCell * c), factor, offset));
    e = keep(seen, e);
    total = add(total, e);
    store_factors(p + kCell * c, e);
  }
  float shrink = std::exp2(top - now);
  sum = sum * shrink + sum_of(total);
  top = now;
  return shrink;
}

template <int MR>
void tile(Rows& rows, int at, int head, float scale, const bf16* const* keys, const bf16* const* values, int cells,
          int64_t first_key) {
  alignas(64) float s[MR][kBlock * kCell];
  alignas(64) Factor p[MR][kBlock * kCell];
  float shrink[MR];
  all_scores<MR>(rows.q + at, head, keys, cells, s);
  for (int i = 0; i < MR; i++)
    shrink[i] = weigh(s[i], cells, rows.sees[at + i] - first_key, scale, rows.top[at + i], rows.sum[at + i], p[i]);
  all_values<MR>(p, values, cells, head, shrink, rows.acc + at * head);
}

// The rows walk over the keys. `cells_of(first cell, count, keys, values)` says where cells lie.
template <typename F>
void walk(Rows& rows, int head, float scale, F&& cells_of) {
  int64_t most = 0;
  for (int i = 0; i < rows.count; i++) {
    rows.top[i] = -INFINITY;
    rows.sum[i] = 0;
    most = std::max(most, rows.sees[i]);
  }
  std::fill(rows.acc, rows.acc + rows.count * head, 0.0f);
  const bf16 *keys[kBlock], *values[kBlock];
  for (int64_t first = 0; first < most; first += kBlock * kCell) {
    cells_of(first / kCell, clamp_cells(most - first), keys, values);
    for (int at = 0; at < rows.count; at += kTile) {
      int count = std::min(kTile, rows.count - at);
      int64_t far = 0;
      for (int i = 0; i < count; i++) far = std::max(far, rows.sees[at + i]);
      if (far <= first) continue;
      int cells = clamp_cells(far - first);
      switch (count) {
        case 1: tile<1>(rows, at, head, scale, keys, values, cells, first); break;
        case 2: tile<2>(rows, at, head, scale, keys, values, cells, first); break;
        case 3: tile<3>(rows, at, head, scale, keys, values, cells, first); break;
        case 4: tile<4>(rows, at, head, scale, keys, values, cells, first); break;
        case 5: tile<5>(rows, at, head, scale, keys, values, cells, first); break;
        default: tile<kTile>(rows, at, head, scale, keys, values, cells, first);
      }
    }
  }
  for (int i = 0; i < rows.count; i++) {
    Vec weight = all(1.0f / rows.sum[i]);
    for (int h = 0; h < head; h += 16)
      store16(rows.out[i] + h, mul(load(rows.acc + i * head + h), weight));
  }
  rows.count = 0;
}

inline void put_key(bf16* cell, int place, const bf16* k, int head) {
  for (int h = 0; h < head / 2; h++) __builtin_memcpy(cell + (h * kCell + place) * 2, k + 2 * h, 4);
}

inline void put_value(bf16* cell, int place, const bf16* v, int head) {
  bf16* row = cell + (place / 2) * 2 * head + place % 2;
  for (int h = 0; h < head; h++) row[2 * h] = v[h];
}

}  // namespace

// Writes keys and values of `tokens` tokens into pages: the store of a layer is [2 * heads][pages][page][head].
extern "C" void qvl_write_pages(bf16* store, int64_t pages, int64_t page, const int64_t* slots, const bf16* k,
                                const bf16* v, int64_t k_stride, int64_t v_stride, int64_t tokens, int64_t heads,
                                int64_t head, int threads) {
  int64_t plane = pages * page * head;
#pragma omp parallel for num_threads(tokens > 64 ? threads : 1) collapse(2)
  for (int64_t n = 0; n < heads; n++)
    for (int64_t t = 0; t < tokens; t++) {
      bf16* cell = store + n * plane + slots[t] / kCell * kCell * head;
      put_key(cell, (int)(slots[t] % kCell), k + t * k_stride + n * head, (int)head);
      put_value(cell + heads * plane, (int)(slots[t] % kCell), v + t * v_stride + n * head, (int)head);
    }
}

// Causal attention over pages. Sequence s has queries first_query[s] .. first_query[s + 1] - 1, the first of which sees
// past[s] + 1 keys, and its pages are page_of[first_page[s]] ...; `out` is [queries][query_heads][head].
extern "C" void qvl_attend_pages(const bf16* store, int64_t pages, int64_t page, const bf16* q, int64_t q_stride,
                                 bf16* out, int64_t sequences, const int64_t* first_query, const int64_t* past,
                                 const int64_t* first_page, const int64_t* page_of, int64_t query_heads,
                                 int64_t heads, int64_t head, int threads) {
  int64_t group = query_heads / heads, plane = pages * page * head, cells_per_page = page / kCell;
  int64_t step = std::max<int64_t>(1, kRows / group);  // queries that walk together
  float scale = kLog2e / std::sqrt((float)head);
  int64_t tasks = 0;
  for (int64_t s = 0; s < sequences; s++) tasks += (first_query[s + 1] - first_query[s] + step - 1) / step;
#pragma omp parallel num_threads(threads)
  {
    Buffer<Rows> rows = make_buffer<Rows>(1);
    rows[0].count = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < tasks * heads; task++) {
      int64_t n = task % heads, left = task / heads, s = 0;
      for (;; s++) {
        int64_t parts = (first_query[s + 1] - first_query[s] + step - 1) / step;
        if (left < parts) break;
        left -= parts;
      }
      const int64_t* own = page_of + first_page[s];
      const bf16* base = store + n * plane;
      auto cells_of = [&](int64_t first, int count, const bf16** keys, const bf16** values) {
        for (int c = 0; c < count; c++) {
          int64_t cell = first + c;
          keys[c] = base + (own[cell / cells_per_page] * page + cell % cells_per_page * kCell) * head;
          values[c] = keys[c] + heads * plane;
        }
      };
      int64_t begin = first_query[s] + left * step, end = std::min(begin + step, first_query[s + 1]);
      for (int64_t t = begin; t < end; t++)
        for (int64_t g = 0; g < group; g++) {
          int64_t at = n * group + g;
          rows[0].add(q + t * q_stride + at * head, out + (t * query_heads + at) * head,
                      past[s] + t - first_query[s] + 1, (int)head);
          if (rows[0].count == kRows) walk(rows[0], (int)head, scale, cells_of);
        }
      if (rows[0].count) walk(rows[0], (int)head, scale, cells_of);
    }
  }
}

// Full attention within segments. q, k and v are [rows][heads][head] with a stride between rows; `cells` is room for
// 2 * heads * head * (rows + 16 * segments) numbers.
extern "C" void qvl_attend_segments(const bf16* q, const bf16* k, const bf16* v, int64_t stride, bf16* out,
                                    int64_t segments, const int64_t* first, int64_t heads, int64_t head, bf16* cells,
                                    int threads) {
  int64_t room = first[segments] + kCell * segments;
  float scale = kLog2e / std::sqrt((float)head);
  Buffer<int64_t> first_task = make_buffer<int64_t>(segments + 1);
  first_task[0] = 0;
  for (int64_t s = 0; s < segments; s++)
    first_task[s + 1] = first_task[s] + heads * ((first[s + 1] - first[s] + kRows - 1) / kRows);
  auto cell = [&](int64_t s, int64_t n, int64_t key) {  // keys; values lie `heads * room * head` later
    return cells + (n * room + first[s] + kCell * s + key / kCell * kCell) * head;
  };
#pragma omp parallel num_threads(threads)
  {
    Buffer<Rows> rows = make_buffer<Rows>(1);
    rows[0].count = 0;
#pragma omp for schedule(static) collapse(2)
    for (int64_t s = 0; s < segments; s++)
      for (int64_t n = 0; n < heads; n++)
        for (int64_t t = 0; t < (first[s + 1] - first[s] + kCell - 1) / kCell * kCell; t++) {
          alignas(64) static const bf16 nothing[kMaxHead] = {0};
          int64_t row = first[s] + t;
          bool real = row < first[s + 1];
          bf16* to = cell(s, n, t);
          put_key(to, (int)(t % kCell), real ? k + row * stride + n * head : nothing, (int)head);
          put_value(to + heads * room * head, (int)(t % kCell), real ? v + row * stride + n * head : nothing,
                    (int)head);
        }
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < first_task[segments]; task++) {
      int64_t s = std::upper_bound(first_task.get(), first_task.get() + segments + 1, task) - first_task.get() - 1;
      int64_t keys = first[s + 1] - first[s], blocks = (keys + kRows - 1) / kRows;
      int64_t n = (task - first_task[s]) / blocks, begin = (task - first_task[s]) % blocks * kRows;
      for (int64_t t = begin; t < std::min(begin + kRows, keys); t++) {
        int64_t row = first[s] + t;
        rows[0].add(q + row * stride + n * head, out + (row * heads + n) * head, keys, (int)head);
      }
      walk(rows[0], (int)head, scale, [&](int64_t at, int count, const bf16** kc, const bf16** vc) {
        for (int c = 0; c < count; c++) {
          kc[c] = cell(s, n, (at + c) * kCell);
          vc[c] = kc[c] + heads * room * head;
        }
      });
    }
  }
}
