// Paged attention for any vector type `V`: online softmax over spans of kSpan positions.
//
// The rows of a tile are pairs of a query and a head that read the same KV head, so that keys and values are decoded
// once for all of them. Keys of a span are transposed: a lane stands for a position, and a score sums along the head in
// order. Spans begin at multiples of kSpan, and a row leaves out positions it does not see; so its result is the same,
// bit for bit, in any tile: prefill in one piece, in chunks, or one token at a time.
#pragma once

#include "numbers.h"
#include "vector_math.h"

namespace shardloom {
namespace {

// What a position outside a span's range is read from.
alignas(64) constexpr unsigned char kZeroHead[kMaxHeadSize * sizeof(float)] = {};

template <class V>
struct Attention {
  static constexpr std::int64_t kSpan = 32;
  static constexpr int kSpanVectors = static_cast<int>(kSpan) / V::kLanes;
  static constexpr int kTileRows = 24;
  // Rows that one register block works on: its accumulators are kBlockRows * kSpanVectors, or * kHeadVectors.
  static constexpr int kBlockRows = V::kRegisters == 32 ? 6 : 3;
  static constexpr int kHeadVectors = 4;
  static constexpr float kLowest = -__builtin_inff();

  struct Tile {
    int rows;
    const float* q[kTileRows];
    float* out[kTileRows];
    // Positions that each row sees.
    std::int64_t first[kTileRows];
    std::int64_t end[kTileRows];
    float maximum[kTileRows];
    float sum[kTileRows];
  };

  // The positions of a span that any row of the tile sees; lane j stands for position `begin + j`.
  struct Span {
    std::int64_t begin;
    std::int64_t first;
    std::int64_t end;
  };

  struct Scratch {
    float* keys;    // [head_size, kSpan]
    float* values;  // [kSpan, value_stride]
    float* scores;  // [kTileRows, kSpan]
    std::int64_t value_stride;
  };

  static Scratch scratch(const AttentionArgs& args) {
    float* start = static_cast<float*>(args.workspace);
    const std::int64_t stride = (args.head_size + V::kLanes - 1) / V::kLanes * V::kLanes;
    return {start, start + kMaxHeadSize * kSpan, start + 2 * kMaxHeadSize * kSpan, stride};
  }
  static_assert((2 * kMaxHeadSize + kTileRows) * kSpan * sizeof(float) <= kWorkspaceBytes);

  // Element offsets in the cache of the positions of a span, for one KV head.
  static void locate(const AttentionArgs& args, const std::int32_t* table, std::int64_t kv_head, const Span& span,
                     std::int64_t (&offsets)[kSpan]) {
    for (std::int64_t p = span.first; p < span.end; p++) {
      const std::int64_t block = table[p / args.block_size];
      const std::int64_t slot = (block * args.kv_heads + kv_head) * args.block_size + p % args.block_size;
      offsets[p - span.begin] = slot * args.head_size;
    }
  }

  template <class T>
  static void prefetch(const AttentionArgs& args, const Span& span, const std::int64_t (&offsets)[kSpan]) {
    constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t j = span.first - span.begin; j < span.end - span.begin; j++) {
      for (std::int64_t d = 0; d < args.head_size; d += kLine) {
        __builtin_prefetch(static_cast<const T*>(args.keys) + offsets[j] + d);
        __builtin_prefetch(static_cast<const T*>(args.values) + offsets[j] + d);
      }
    }
  }

  template <class T>
  static void decode_keys(const AttentionArgs& args, const Span& span, const std::int64_t (&offsets)[kSpan],
                          const Scratch& to) {
    const T* rows[kSpan];
    for (std::int64_t j = 0; j < kSpan; j++) {
      const bool inside = span.begin + j >= span.first && span.begin + j < span.end;
      rows[j] = inside ? static_cast<const T*>(args.keys) + offsets[j] : reinterpret_cast<const T*>(kZeroHead);
    }
    for (std::int64_t d = 0; d < args.head_size; d += V::kLanes) {
      const std::int64_t columns = args.head_size - d < V::kLanes ? args.head_size - d : V::kLanes;
      for (std::int64_t j = 0; j < kSpan; j += V::kLanes) {
        V square[V::kLanes];
        if (columns == V::kLanes) {
          for (int i = 0; i < V::kLanes; i++) square[i] = V::load(rows[j + i] + d);
        } else {
          for (int i = 0; i < V::kLanes; i++) square[i] = V::load_first(rows[j + i] + d, columns);
        }
        V::transpose(square);
        for (std::int64_t i = 0; i < columns; i++) square[i].store(to.keys + (d + i) * kSpan + j);
      }
    }
  }

  template <class T>
  static void decode_values(const AttentionArgs& args, const Span& span, const std::int64_t (&offsets)[kSpan],
                            const Scratch& to) {
    for (std::int64_t j = span.first - span.begin; j < span.end - span.begin; j++) {
      const T* row = static_cast<const T*>(args.values) + offsets[j];
      float* out = to.values + j * to.value_stride;
      std::int64_t d = 0;
      for (; d + V::kLanes <= args.head_size; d += V::kLanes) V::load(row + d).store(out + d);
      if (d < args.head_size) V::load_first(row + d, args.head_size - d).store(out + d);
    }
  }

  // scores[row + r][j] = q . key of position j, unscaled.
  template <int R>
  static void score_rows(const AttentionArgs& args, const Tile& tile, const Scratch& in, int row) {
    V acc[R * kSpanVectors];
    for (V& a : acc) a = V::zero();
    for (std::int64_t d = 0; d < args.head_size; d++) {
      V query[R];
      for (int r = 0; r < R; r++) query[r] = V::set(tile.q[row + r][d]);
      for (int v = 0; v < kSpanVectors; v++) {
        const V key = V::load(in.keys + d * kSpan + v * V::kLanes);
        for (int r = 0; r < R; r++) acc[r * kSpanVectors + v] = V::fma(query[r], key, acc[r * kSpanVectors + v]);
      }
    }
    for (int r = 0; r < R; r++) {
      for (int v = 0; v < kSpanVectors; v++) {
        acc[r * kSpanVectors + v].store(in.scores + (row + r) * kSpan + v * V::kLanes);
      }
    }
  }

  static V bounded(const AttentionArgs& args, V score) {
    const V scaled = score * V::set(args.scale);
    if (args.soft_cap == 0.0f) return scaled;
    const V cap = V::set(args.soft_cap);
    return cap * tanh(scaled / cap);
  }

  // Turns the scores of a row into weights relative to its new maximum, and what it has summed so far likewise.
  static void soften_row(const AttentionArgs& args, Tile& tile, const Span& span, const Scratch& in, int row) {
    const std::int64_t first = tile.first[row] - span.begin;
    const std::int64_t end = tile.end[row] - span.begin;
    if (end <= 0 || first >= kSpan) return;
    float* scores = in.scores + row * kSpan;
    V s[kSpanVectors];
    V top = V::set(kLowest);
    for (int v = 0; v < kSpanVectors; v++) {
      s[v] = bounded(args, V::load(scores + v * V::kLanes));
      if (first > 0 || end < kSpan) {
        const V lane = V::iota() + V::set(static_cast<float>(v * V::kLanes));
        s[v] = V::where_less(lane, V::set(static_cast<float>(first)), V::set(kLowest), s[v]);
        s[v] = V::where_less(lane, V::set(static_cast<float>(end)), s[v], V::set(kLowest));
      }
      top = V::max(s[v], top);
    }
    const float before = tile.maximum[row];
    const float span_top = top.max_lane();
    const float maximum = span_top > before ? span_top : before;
    V total = V::zero();
    for (int v = 0; v < kSpanVectors; v++) {
      const V weight = exp_nonpositive(s[v] - V::set(maximum));
      weight.store(scores + v * V::kLanes);
      total = total + weight;
    }
    if (maximum != before) rescale_row(args, tile, row, maximum);
    tile.sum[row] += total.sum();
  }

  static void rescale_row(const AttentionArgs& args, Tile& tile, int row, float maximum) {
    float factors[V::kLanes];
    exp_nonpositive(V::set(tile.maximum[row] - maximum)).store(factors);
    tile.maximum[row] = maximum;
    tile.sum[row] *= factors[0];
    multiply_row(args, tile.out[row], factors[0]);
  }

  static void multiply_row(const AttentionArgs& args, float* out, float factor) {
    std::int64_t d = 0;
    for (; d + V::kLanes <= args.head_size; d += V::kLanes) (V::load(out + d) * V::set(factor)).store(out + d);
    if (d < args.head_size) {
      const std::int64_t rest = args.head_size - d;
      (V::load_first(out + d, rest) * V::set(factor)).store_first(out + d, rest);
    }
  }

  // out[row + r][d ..] += sum over lanes [from, to) of weight * value, for W vectors of columns from d on.
  template <int R, int W>
  static void add_columns(const Tile& tile, const Scratch& in, int row, std::int64_t from, std::int64_t to,
                          std::int64_t d) {
    V acc[R * W];
    for (int r = 0; r < R; r++) {
      for (int w = 0; w < W; w++) acc[r * W + w] = V::load(tile.out[row + r] + d + w * V::kLanes);
    }
    for (std::int64_t j = from; j < to; j++) {
      V weight[R];
      for (int r = 0; r < R; r++) weight[r] = V::set(in.scores[(row + r) * kSpan + j]);
      for (int w = 0; w < W; w++) {
        const V value = V::load(in.values + j * in.value_stride + d + w * V::kLanes);
        for (int r = 0; r < R; r++) acc[r * W + w] = V::fma(weight[r], value, acc[r * W + w]);
      }
    }
    for (int r = 0; r < R; r++) {
      for (int w = 0; w < W; w++) acc[r * W + w].store(tile.out[row + r] + d + w * V::kLanes);
    }
  }

  // The same for the last columns, fewer than a vector.
  static void add_last_columns(const AttentionArgs& args, const Tile& tile, const Scratch& in, int row,
                               std::int64_t from, std::int64_t to, std::int64_t d) {
    const std::int64_t rest = args.head_size - d;
    V acc = V::load_first(tile.out[row] + d, rest);
    for (std::int64_t j = from; j < to; j++) {
      acc = V::fma(V::set(in.scores[row * kSpan + j]), V::load(in.values + j * in.value_stride + d), acc);
    }
    acc.store_first(tile.out[row] + d, rest);
  }

  template <int R>
  static void add_values(const AttentionArgs& args, const Tile& tile, const Scratch& in, int row, std::int64_t from,
                         std::int64_t to) {
    if (from >= to) return;
    std::int64_t d = 0;
    for (; d + kHeadVectors * V::kLanes <= args.head_size; d += kHeadVectors * V::kLanes) {
      add_columns<R, kHeadVectors>(tile, in, row, from, to, d);
    }
    for (; d + V::kLanes <= args.head_size; d += V::kLanes) add_columns<R, 1>(tile, in, row, from, to, d);
    if (d < args.head_size) {
      for (int r = 0; r < R; r++) add_last_columns(args, tile, in, row + r, from, to, d);
    }
  }

  // Positions that all R rows see go through the register block; those at the edges, row by row and in order.
  template <int R>
  static void value_rows(const AttentionArgs& args, const Tile& tile, const Span& span, const Scratch& in, int row) {
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
      for (int r = 0; r < R; r++) add_values<1>(args, tile, in, row + r, first[r], end[r]);
      return;
    }
    for (int r = 0; r < R; r++) add_values<1>(args, tile, in, row + r, first[r], from);
    add_values<R>(args, tile, in, row, from, to);
    for (int r = 0; r < R; r++) add_values<1>(args, tile, in, row + r, to, end[r]);
  }

  // The last tile.rows - row rows, of which there are at most R.
  template <int R>
  static void rest_scores(const AttentionArgs& args, const Tile& tile, const Scratch& in, int row) {
    if (tile.rows - row == R) {
      score_rows<R>(args, tile, in, row);
    } else if constexpr (R > 1) {
      rest_scores<R - 1>(args, tile, in, row);
    }
  }

  template <int R>
  static void rest_values(const AttentionArgs& args, const Tile& tile, const Span& span, const Scratch& in, int row) {
    if (tile.rows - row == R) {
      value_rows<R>(args, tile, span, in, row);
    } else if constexpr (R > 1) {
      rest_values<R - 1>(args, tile, span, in, row);
    }
  }

  static void attend_span(const AttentionArgs& args, Tile& tile, const Span& span, const Scratch& in) {
    int row = 0;
    for (; row + kBlockRows <= tile.rows; row += kBlockRows) score_rows<kBlockRows>(args, tile, in, row);
    if (row < tile.rows) rest_scores<kBlockRows - 1>(args, tile, in, row);
    for (row = 0; row < tile.rows; row++) soften_row(args, tile, span, in, row);
    for (row = 0; row + kBlockRows <= tile.rows; row += kBlockRows) value_rows<kBlockRows>(args, tile, span, in, row);
    if (row < tile.rows) rest_values<kBlockRows - 1>(args, tile, span, in, row);
  }

  static Span span_at(const Tile& tile, std::int64_t begin) {
    const std::int64_t first = tile.first[0];
    const std::int64_t end = tile.end[tile.rows - 1];
    return {begin, begin > first ? begin : first, begin + kSpan < end ? begin + kSpan : end};
  }

  // Rows of a tile stand in the order of their queries: the first one sees the earliest position, the last the latest.
  template <class T>
  static void attend_tile(const AttentionArgs& args, Tile& tile, const std::int32_t* table, std::int64_t kv_head) {
    const Scratch in = scratch(args);
    std::int64_t offsets[2][kSpan];
    int current = 0;
    Span span = span_at(tile, tile.first[0] / kSpan * kSpan);
    locate(args, table, kv_head, span, offsets[current]);
    while (span.first < span.end) {
      const Span next = span_at(tile, span.begin + kSpan);
      locate(args, table, kv_head, next, offsets[1 - current]);
      prefetch<T>(args, next, offsets[1 - current]);
      decode_keys<T>(args, span, offsets[current], in);
      decode_values<T>(args, span, offsets[current], in);
      attend_span(args, tile, span, in);
      span = next;
      current = 1 - current;
    }
    for (int row = 0; row < tile.rows; row++) multiply_row(args, tile.out[row], 1.0f / tile.sum[row]);
  }

  struct Heads {
    std::int64_t begin;
    std::int64_t count;
  };

  // The query heads that read a KV head: they are neighbours, for kv_head_of does not decrease.
  static Heads heads_of(const AttentionArgs& args, std::int64_t kv_head) {
    std::int64_t begin = 0;
    while (begin < args.heads && args.kv_head_of[begin] < kv_head) begin++;
    std::int64_t end = begin;
    while (end < args.heads && args.kv_head_of[end] == kv_head) end++;
    return {begin, end - begin};
  }

  // Rows [begin, begin + rows) of the sequence, counted query by query and within a query head by head.
  static void fill_tile(const AttentionArgs& args, Tile& tile, std::int64_t sequence, const Heads& heads,
                        std::int64_t begin, int rows) {
    const std::int64_t query_start = args.query_starts[sequence];
    const std::int64_t queries = args.query_starts[sequence + 1] - query_start;
    const std::int64_t first_position = args.context_lengths[sequence] - queries;
    tile.rows = rows;
    for (int r = 0; r < rows; r++) {
      const std::int64_t query = (begin + r) / heads.count;
      const std::int64_t column = (heads.begin + (begin + r) % heads.count) * args.head_size;
      tile.q[r] = args.q + (query_start + query) * args.q_stride + column;
      tile.out[r] = args.out + (query_start + query) * args.out_stride + column;
      tile.end[r] = first_position + query + 1;
      const std::int64_t window_start = tile.end[r] - args.sliding_window;
      tile.first[r] = args.sliding_window > 0 && window_start > 0 ? window_start : 0;
      tile.maximum[r] = kLowest;
      tile.sum[r] = 0.0f;
      std::memset(tile.out[r], 0, static_cast<std::size_t>(args.head_size) * sizeof(float));
    }
  }

  static void run(const AttentionArgs& args, Range units) {
    with_float_type(args.cache_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      for (std::int64_t unit = units.begin; unit < units.end; unit++) {
        const std::int64_t sequence = unit / args.kv_heads;
        const std::int64_t kv_head = unit % args.kv_heads;
        const Heads heads = heads_of(args, kv_head);
        const std::int32_t* table = args.block_tables + sequence * args.block_table_stride;
        const std::int64_t rows = (args.query_starts[sequence + 1] - args.query_starts[sequence]) * heads.count;
        for (std::int64_t row = 0; row < rows; row += kTileRows) {
          Tile tile;
          fill_tile(args, tile, sequence, heads, row, static_cast<int>(rows - row < kTileRows ? rows - row : kTileRows));
          attend_tile<T>(args, tile, table, kv_head);
        }
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
