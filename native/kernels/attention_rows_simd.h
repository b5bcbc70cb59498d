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
    // Of the partition under way, whose weighted sum of values is in `sums`: the largest score and the sum of weights.
    float maximum[kTileRows];
    float total[kTileRows];
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
  // element d of its key at keys[v] + d * key_step.
  template <class T>
  struct Entries {
    const T* keys[kVectors];
    std::int64_t key_step;
    const T* values[kSpan];
    // What comes next in the cache, to be read ahead; null where that is not worth it.
    const T* next_keys[kVectors];
    const T* next_values[kSpan];
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
    repeat<R * kVectors>([&](auto i) __attribute__((always_inline)) { acc[i] = V::zero(); });
    repeat<R>([&](auto r) __attribute__((always_inline)) { queries[r] = tile.q[row + r]; });
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) { keys[v] = in.keys[v]; });
    const std::int64_t step = in.key_step;
    for (std::int64_t d = 0; d < args.head_size; d++) {
      outer<R, kVectors>(
          acc, [&](auto r) __attribute__((always_inline)) { return V::set(queries[r][d]); },
          [&](auto v) __attribute__((always_inline)) {
            if constexpr (kAhead) __builtin_prefetch(in.next_keys[v] + d * step);
            return V::load(keys[v] + d * step);
          });
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

  // Bounds the scores of a row and leaves out the positions that it does not see. Returns the largest.
  static float bound_row(const AttentionArgs& args, const Tile& tile, const Span& span, int row) {
    const std::int64_t first = tile.first[row] - span.begin;
    const std::int64_t end = tile.end[row] - span.begin;
    const bool whole = first <= 0 && end >= kSpan;
    float* scores = tile.scores + row * kSpan;
    V top = V::set(kLowest);
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      V dot = V::load(scores + v * V::kLanes);
      if (args.scales != nullptr) dot = dot * V::load(tile.key_scales + v * V::kLanes);
      V own = bounded(args, dot);
      if (!whole) own = seen(own, v * V::kLanes, first, end);
      own.store(scores + v * V::kLanes);
      top = V::max(own, top);
    });
    return top.max_lane();
  }

  // Raises the maximum of a row, and what it has summed so far likewise.
  static void raise_row(Tile& tile, int row, float top) {
    const float before = tile.maximum[row];
    if (!(top > before)) return;
    const float factor = exp_of(before - top);
    tile.maximum[row] = top;
    tile.total[row] *= factor;
    multiply(tile.sums + row * tile.stride, factor, tile.stride);
  }

  // Turns the scores of a row into weights relative to its maximum, and these into what multiplies the values as cached.
  static void weigh_row(const AttentionArgs& args, Tile& tile, int row) {
    float* scores = tile.scores + row * kSpan;
    V total = V::zero();
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      const V weight = exp_nonpositive(V::load(scores + v * V::kLanes) - V::set(tile.maximum[row]));
      total = total + weight;
      const bool scaled = args.scales != nullptr;
      (scaled ? weight * V::load(tile.value_scales + v * V::kLanes) : weight).store(scores + v * V::kLanes);
    });
    tile.total[row] += total.sum();
  }

  // Turns scores into weights. Step by step over all rows: a row's steps wait for each other, other rows' do not.
  static void soften_rows(const AttentionArgs& args, Tile& tile, const Span& span, int begin, int end) {
    float tops[kTileRows];
    const auto sees = [&](int row) { return tile.end[row] > span.begin && tile.first[row] < span.begin + kSpan; };
    for (int row = begin; row < end; row++) {
      if (sees(row)) tops[row] = bound_row(args, tile, span, row);
    }
    for (int row = begin; row < end; row++) {
      if (sees(row)) raise_row(tile, row, tops[row]);
    }
    for (int row = begin; row < end; row++) {
      if (sees(row)) weigh_row(args, tile, row);
    }
  }

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
    for (std::int64_t j = from; j < to; j++) {
      const T* values = in.values[j] + d;
      if constexpr (kAhead) {
        for (std::int64_t i = 0; i < W * V::kLanes; i += kLine) __builtin_prefetch(in.next_values[j] + d + i);
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
    soften_rows(args, tile, span, begin, end);
    for_each_block(begin, end, kValueRows, [&](int row, int rows) {
      if (kAhead && row == begin) value_block<kValueRows, kAhead>(args, tile, span, in, row, rows);
      else value_block<kValueRows, false>(args, tile, span, in, row, rows);
    });
  }
};

}  // namespace
}  // namespace shardloom
