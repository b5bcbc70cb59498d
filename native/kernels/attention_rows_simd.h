// The arithmetic of attention on one span, for any vector type `V`: scores, online softmax, weighted values.
#pragma once

#include "attention_cache_simd.h"
#include "vector_math.h"

namespace shardloom {
namespace {

template <class V>
struct AttentionRows {
  using Cache = AttentionCache<V>;
  using Places = typename Cache::Places;
  static constexpr int kVectors = Cache::kVectors;
  // All rows of a tile. Those that share a KV head are kAttentionHeadRows at most.
  static constexpr int kTileRows = 64;
  // Rows of a register block: of scores, with kVectors accumulators each, and of values, with kHeadVectors.
  static constexpr int kScoreRows = V::kRegisters == 32 ? 12 : 3;
  static constexpr int kValueRows = V::kRegisters == 32 ? 6 : 3;
  static constexpr int kHeadVectors = 4;
  static constexpr float kLowest = -__builtin_inff();

  // Rows are pairs of a query and a head. Those of one KV head stand side by side, in the order of their queries.
  struct Tile {
    std::int64_t first_kv_head;
    int kv_heads;
    int rows;
    // Rows of the i-th KV head: [row_begin[i], row_begin[i + 1]).
    int row_begin[kTileRows + 1];
    const float* q[kTileRows];
    float* out[kTileRows];
    std::int64_t head[kTileRows];
    std::int64_t query[kTileRows];
    // Positions that each row sees.
    std::int64_t first[kTileRows];
    std::int64_t end[kTileRows];
    // Of the partition under way, whose weighted sum of values is in `sums`: the largest score, and the sum of weights, lane
    // by lane.
    float maximum[kTileRows];
    float totals[kTileRows * V::kLanes];
    // [kTileRows, stride]
    float* sums;
    // [kTileRows, kSpan]
    float* scores;
    // Head size, rounded up to whole vectors.
    std::int64_t stride;
    // Of the span and the KV head at hand, where the cache is i8.
    float key_scales[kSpan];
    float value_scales[kSpan];
  };

  // Where a span's keys and values are read: in the cache, or where they were decoded to. Position j of lane group v has
  // element d of its key at keys + places->keys[v] + d * key_step, and its value at values + places->values[j].
  template <class T>
  struct Entries {
    const T* keys;
    const T* values;
    const Places* places;
    std::int64_t key_step;
    // What comes next in the cache, to be read ahead.
    const T* next_keys;
    const T* next_values;
    const Places* next;
  };

  // acc[r * W + w] += row(r) * column(w). The fewer of the two stay in registers meanwhile.
  template <int R, int W, class Row, class Column>
  __attribute__((always_inline)) static inline void outer(V (&acc)[R * W], Row row, Column column) {
    if constexpr (R < W) {
      V rows[R];
      repeat<R>([&](auto r) __attribute__((always_inline)) { rows[r] = V::kept(row(r)); });
      repeat<W>([&](auto w) __attribute__((always_inline)) {
        const V own = column(w);
        repeat<R>([&](auto r)
                      __attribute__((always_inline)) { acc[r * W + w] = V::fma(rows[r], own, acc[r * W + w]); });
      });
    } else {
      V columns[W];
      repeat<W>([&](auto w) __attribute__((always_inline)) { columns[w] = V::kept(column(w)); });
      repeat<R>([&](auto r) __attribute__((always_inline)) {
        const V own = row(r);
        repeat<W>([&](auto w)
                      __attribute__((always_inline)) { acc[r * W + w] = V::fma(own, columns[w], acc[r * W + w]); });
      });
    }
  }

  // scores[row + r][j] = q . key of position j, unscaled.
  template <int R, bool kAhead, class T>
  static void score_rows(const AttentionArgs& args, const Tile& tile, const Entries<T>& in, int row) {
    V acc[R * kVectors];
    const float* queries[R];
    const T* keys[kVectors];
    const T* next_keys[kVectors];
    repeat<R * kVectors>([&](auto i) __attribute__((always_inline)) { acc[i] = V::zero(); });
    repeat<R>([&](auto r) __attribute__((always_inline)) { queries[r] = tile.q[row + r]; });
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      keys[v] = in.keys + in.places->keys[v];
      if constexpr (kAhead) next_keys[v] = in.next_keys + in.next->keys[v];
    });
    const std::int64_t step = in.key_step;
    const std::int64_t within_line = kAhead ? Cache::rows_of_line(args, sizeof(T)) - 1 : 0;
    for (std::int64_t d = 0; d < args.head_size; d++) {
      if constexpr (kAhead) {
        if ((d & within_line) == 0) {
          repeat<kVectors>([&](auto v)
                               __attribute__((always_inline)) { read_ahead(next_keys[v] + d * step); });
        }
      }
      outer<R, kVectors>(
          acc, [&](auto r) __attribute__((always_inline)) { return V::set(queries[r][d]); },
          [&](auto v) __attribute__((always_inline)) { return V::load(keys[v] + d * step); });
    }
    repeat<R>([&](auto r) __attribute__((always_inline)) {
      float* scores = tile.scores + (row + r) * kSpan;
      repeat<kVectors>([&](auto v)
                           __attribute__((always_inline)) { acc[r * kVectors + v].store(scores + v * V::kLanes); });
    });
  }

  static V bounded(const AttentionArgs& args, V score) {
    const V scaled = score * V::set(args.scale);
    if (args.soft_cap == 0.0f) return scaled;
    const V cap = V::set(args.soft_cap);
    return cap * tanh(scaled / cap);
  }

  // The scores of lanes [first, end), counted from `lane` on; the lowest value elsewhere.
  static V seen(V scores, int lane, std::int64_t first, std::int64_t end) {
    const V index = V::iota() + V::set(static_cast<float>(lane));
    const V late = V::where_less(index, V::set(static_cast<float>(first)), V::set(kLowest), scores);
    return V::where_less(index, V::set(static_cast<float>(end)), late, V::set(kLowest));
  }

  // Raises the maximum of a row to the largest of some scores, and what it has summed so far likewise. Mostly there is none
  // above it, which takes one comparison.
  static void raise_row(Tile& tile, int row, const V (&scores)[kVectors]) {
    const float before = tile.maximum[row];
    V top = V::set(before);
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) { top = V::max(scores[v], top); });
    if (!V::any_less(V::set(before), top)) return;
    tile.maximum[row] = top.max_lane();
    const float factor = exp_of(before - tile.maximum[row]);
    multiply(tile.totals + row * V::kLanes, factor, V::kLanes);
    multiply(tile.sums + row * tile.stride, factor, tile.stride);
  }

  // Turns the scores of a row into weights relative to its maximum, 0 where it does not see the position, and these into
  // what multiplies the values as they are cached.
  static void soften_row(const AttentionArgs& args, Tile& tile, const Span& span, int row) {
    const std::int64_t first = tile.first[row] - span.begin;
    const std::int64_t end = tile.end[row] - span.begin;
    const bool whole = first <= 0 && end >= kSpan;
    const bool scaled = args.scales != nullptr;
    float* scores = tile.scores + row * kSpan;
    V own[kVectors];
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      own[v] = V::load(scores + v * V::kLanes);
      if (scaled) own[v] = own[v] * V::load(tile.key_scales + v * V::kLanes);
      own[v] = bounded(args, own[v]);
      if (!whole) own[v] = seen(own[v], v * V::kLanes, first, end);
    });
    raise_row(tile, row, own);
    const V maximum = V::set(tile.maximum[row]);
    V total = V::load(tile.totals + row * V::kLanes);
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      V weight = exp_nonpositive(own[v] - maximum);
      total = total + weight;
      if (scaled) weight = weight * V::load(tile.value_scales + v * V::kLanes);
      weight.store(scores + v * V::kLanes);
    });
    total.store(tile.totals + row * V::kLanes);
  }

  static float total_of(const Tile& tile, int row) { return V::load(tile.totals + row * V::kLanes).sum(); }

  static float exp_of(float x) {
    float lanes[V::kLanes];
    exp_nonpositive(V::set(x)).store(lanes);
    return lanes[0];
  }

  // row[0 .. count) *= factor; count is a multiple of V::kLanes.
  static void multiply(float* row, float factor, std::int64_t count) {
    for (std::int64_t d = 0; d < count; d += V::kLanes) (V::load(row + d) * V::set(factor)).store(row + d);
  }

  // sums[row + r][d ..] += sum over lanes [from, to) of weight * value, for W vectors of columns from d on, the last of
  // which has `last` columns.
  template <int R, int W, bool kAhead, class T>
  static void add_columns(const Tile& tile, const Entries<T>& in, int row, std::int64_t from, std::int64_t to,
                          std::int64_t d, std::int64_t last) {
    constexpr std::int64_t kLine = Cache::kLineBytes / static_cast<std::int64_t>(sizeof(T));
    V acc[R * W];
    const float* weights[R];
    repeat<R>([&](auto r) __attribute__((always_inline)) {
      weights[r] = tile.scores + (row + r) * kSpan;
      repeat<W>([&](auto w) __attribute__((always_inline)) {
        acc[r * W + w] = V::load(tile.sums + (row + r) * tile.stride + d + w * V::kLanes);
      });
    });
    const T* first_value = in.values + d;
    const T* next_value = kAhead ? in.next_values + d : nullptr;
    const std::int64_t* places = in.places->values;
    const std::int64_t* next_places = kAhead ? in.next->values : nullptr;
    for (std::int64_t j = from; j < to; j++) {
      const T* values = first_value + places[j];
      if constexpr (kAhead) {
        const T* next = next_value + next_places[j];
        for (std::int64_t i = 0; i < W * V::kLanes; i += kLine) read_ahead(next + i);
      }
      outer<R, W>(
          acc, [&](auto r) __attribute__((always_inline)) { return V::set(weights[r][j]); },
          [&](auto w) __attribute__((always_inline)) {
            const bool whole = w + 1 < W || last == V::kLanes;
            return whole ? V::load(values + w * V::kLanes) : V::load_first(values + w * V::kLanes, last);
          });
    }
    repeat<R>([&](auto r) __attribute__((always_inline)) {
      repeat<W>([&](auto w) __attribute__((always_inline)) {
        acc[r * W + w].store(tile.sums + (row + r) * tile.stride + d + w * V::kLanes);
      });
    });
  }

  template <int R, bool kAhead, class T>
  static void add_values(const AttentionArgs& args, const Tile& tile, const Entries<T>& in, int row, std::int64_t from,
                         std::int64_t to) {
    if (from >= to) return;
    std::int64_t d = 0;
    for (; d + kHeadVectors * V::kLanes <= args.head_size; d += kHeadVectors * V::kLanes) {
      add_columns<R, kHeadVectors, kAhead>(tile, in, row, from, to, d, V::kLanes);
    }
    for (; d < args.head_size; d += V::kLanes) {
      const std::int64_t rest = args.head_size - d;
      add_columns<R, 1, kAhead>(tile, in, row, from, to, d, rest < V::kLanes ? rest : V::kLanes);
    }
  }

  // Positions that all R rows see go through the register block; those at the edges, row by row and in order.
  template <int R, bool kAhead, class T>
  static void value_rows(const AttentionArgs& args, const Tile& tile, const Span& span, const Entries<T>& in,
                         int row) {
    std::int64_t from = 0;
    std::int64_t to = kSpan;
    std::int64_t first[R];
    std::int64_t end[R];
    for (int r = 0; r < R; r++) {
      first[r] = tile.first[row + r] > span.begin ? tile.first[row + r] - span.begin : 0;
      end[r] = tile.end[row + r] < span.begin + kSpan ? tile.end[row + r] - span.begin : kSpan;
      if (first[r] > from) from = first[r];
      if (end[r] < to) to = end[r];
    }
    if (from >= to) {
      for (int r = 0; r < R; r++) add_values<1, false>(args, tile, in, row + r, first[r], end[r]);
      return;
    }
    for (int r = 0; r < R; r++) add_values<1, false>(args, tile, in, row + r, first[r], from);
    add_values<R, kAhead>(args, tile, in, row, from, to);
    for (int r = 0; r < R; r++) add_values<1, false>(args, tile, in, row + r, to, end[r]);
  }

  // Rows [row, row + count), at most R.
  template <int R, bool kAhead, class T>
  static void score_block(const AttentionArgs& args, const Tile& tile, const Entries<T>& in, int row, int count) {
    if (count == R) {
      score_rows<R, kAhead>(args, tile, in, row);
    } else if constexpr (R > 1) {
      score_block<R - 1, kAhead>(args, tile, in, row, count);
    }
  }

  template <int R, bool kAhead, class T>
  static void value_block(const AttentionArgs& args, const Tile& tile, const Span& span, const Entries<T>& in, int row,
                          int count) {
    if (count == R) {
      value_rows<R, kAhead>(args, tile, span, in, row);
    } else if constexpr (R > 1) {
      value_block<R - 1, kAhead>(args, tile, span, in, row, count);
    }
  }

  // Calls work(row, rows) for blocks of at most `most` of the rows [begin, end), as even as can be.
  template <class Work>
  static void for_each_block(int begin, int end, int most, Work work) {
    const int blocks = (end - begin + most - 1) / most;
    for (int b = 0, row = begin; b < blocks; b++) {
      const int next = begin + (end - begin) * (b + 1) / blocks;
      work(row, next - row);
      row = next;
    }
  }

  // Rows [begin, end), which share a KV head. The first block of rows reads ahead where `kAhead` says so.
  template <bool kAhead, class T>
  static void attend_span(const AttentionArgs& args, Tile& tile, const Span& span, const Entries<T>& in, int begin,
                          int end) {
    for_each_block(begin, end, kScoreRows, [&](int row, int rows) {
      if (kAhead && row == begin) score_block<kScoreRows, kAhead>(args, tile, in, row, rows);
      else score_block<kScoreRows, false>(args, tile, in, row, rows);
    });
    for (int row = begin; row < end; row++) {
      const bool sees = tile.end[row] > span.begin && tile.first[row] < span.begin + kSpan;
      if (sees) soften_row(args, tile, span, row);
    }
    for_each_block(begin, end, kValueRows, [&](int row, int rows) {
      if (kAhead && row == begin) value_block<kValueRows, kAhead>(args, tile, span, in, row, rows);
      else value_block<kValueRows, false>(args, tile, span, in, row, rows);
    });
  }
};

}  // namespace
}  // namespace shardloom
