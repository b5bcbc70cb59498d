// The arithmetic of attention on one decoded span, for any vector type `V`: scores, online softmax, weighted values.
#pragma once

#include "attention_cache_simd.h"
#include "vector_math.h"

namespace shardloom {
namespace {

template <class V>
struct AttentionRows {
  static constexpr int kSpanVectors = static_cast<int>(kSpan) / V::kLanes;
  // Rows that share a KV head, and all rows of a tile.
  static constexpr int kHeadRows = 48;
  static constexpr int kTileRows = 64;
  // Rows that one register block works on: its accumulators are kBlockRows * kSpanVectors, or * kHeadVectors.
  static constexpr int kBlockRows = V::kRegisters == 32 ? 6 : 3;
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
    // Positions that each row sees.
    std::int64_t first[kTileRows];
    std::int64_t end[kTileRows];
    float maximum[kTileRows];
    float sum[kTileRows];
  };

  // scores[row + r][j] = q . key of position j, unscaled.
  template <int R>
  static void score_rows(const AttentionArgs& args, const Tile& tile, const AttentionScratch& in, int row,
                         ReadAhead& ahead) {
    constexpr std::int64_t kStep = 8;
    const std::int64_t lines = kStep * kSpan * ahead.element_bytes / ReadAhead::kLineBytes;
    V acc[R * kSpanVectors];
    const float* queries[R];
    repeat<R * kSpanVectors>([&](auto i) { acc[i] = V::zero(); });
    repeat<R>([&](auto r) { queries[r] = tile.q[row + r]; });
    for (std::int64_t step = 0; step < args.head_size; step += kStep) {
      ahead.lines(lines);
      const std::int64_t end = step + kStep < args.head_size ? step + kStep : args.head_size;
      for (std::int64_t d = step; d < end; d++) {
        V query[R];
        repeat<R>([&](auto r) { query[r] = V::kept(V::set(queries[r][d])); });
        repeat<kSpanVectors>([&](auto v) {
          const V key = V::load(in.keys + d * kSpan + v * V::kLanes);
          repeat<R>([&](auto r) { acc[r * kSpanVectors + v] = V::fma(query[r], key, acc[r * kSpanVectors + v]); });
        });
      }
    }
    repeat<R>([&](auto r) {
      float* scores = in.scores + (row + r) * kSpan;
      repeat<kSpanVectors>([&](auto v) { acc[r * kSpanVectors + v].store(scores + v * V::kLanes); });
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

  // Turns the scores of a row into weights relative to its new maximum, and what it has summed so far likewise.
  static void soften_row(const AttentionArgs& args, Tile& tile, const Span& span, const AttentionScratch& in, int row) {
    const std::int64_t first = tile.first[row] - span.begin;
    const std::int64_t end = tile.end[row] - span.begin;
    if (end <= 0 || first >= kSpan) return;
    float* scores = in.scores + row * kSpan;
    const bool whole = first <= 0 && end >= kSpan;
    V s[kSpanVectors];
    V top = V::set(kLowest);
    repeat<kSpanVectors>([&](auto v) {
      s[v] = bounded(args, V::load(scores + v * V::kLanes));
      if (!whole) s[v] = seen(s[v], v * V::kLanes, first, end);
      top = V::max(s[v], top);
    });
    const float before = tile.maximum[row];
    const float span_top = top.max_lane();
    const float maximum = span_top > before ? span_top : before;
    V total = V::zero();
    repeat<kSpanVectors>([&](auto v) {
      const V weight = exp_nonpositive(s[v] - V::set(maximum));
      weight.store(scores + v * V::kLanes);
      total = total + weight;
    });
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
  static void add_columns(const Tile& tile, const AttentionScratch& in, int row, std::int64_t from, std::int64_t to,
                          std::int64_t d) {
    V acc[R * W];
    const float* weights[R];
    repeat<R>([&](auto r) {
      weights[r] = in.scores + (row + r) * kSpan;
      repeat<W>([&](auto w) { acc[r * W + w] = V::load(tile.out[row + r] + d + w * V::kLanes); });
    });
    for (std::int64_t j = from; j < to; j++) {
      V weight[R];
      repeat<R>([&](auto r) { weight[r] = V::kept(V::set(weights[r][j])); });
      repeat<W>([&](auto w) {
        const V value = V::load(in.values + j * in.value_stride + d + w * V::kLanes);
        repeat<R>([&](auto r) { acc[r * W + w] = V::fma(weight[r], value, acc[r * W + w]); });
      });
    }
    repeat<R>([&](auto r) {
      repeat<W>([&](auto w) { acc[r * W + w].store(tile.out[row + r] + d + w * V::kLanes); });
    });
  }

  // The same for the last columns, fewer than a vector.
  static void add_last_columns(const AttentionArgs& args, const Tile& tile, const AttentionScratch& in, int row,
                               std::int64_t from, std::int64_t to, std::int64_t d) {
    const std::int64_t rest = args.head_size - d;
    V acc = V::load_first(tile.out[row] + d, rest);
    for (std::int64_t j = from; j < to; j++) {
      acc = V::fma(V::set(in.scores[row * kSpan + j]), V::load(in.values + j * in.value_stride + d), acc);
    }
    acc.store_first(tile.out[row] + d, rest);
  }

  template <int R>
  static void add_values(const AttentionArgs& args, const Tile& tile, const AttentionScratch& in, int row,
                         std::int64_t from, std::int64_t to) {
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
  static void value_rows(const AttentionArgs& args, const Tile& tile, const Span& span, const AttentionScratch& in,
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
      for (int r = 0; r < R; r++) add_values<1>(args, tile, in, row + r, first[r], end[r]);
      return;
    }
    for (int r = 0; r < R; r++) add_values<1>(args, tile, in, row + r, first[r], from);
    add_values<R>(args, tile, in, row, from, to);
    for (int r = 0; r < R; r++) add_values<1>(args, tile, in, row + r, to, end[r]);
  }

  // Rows [row, row + count), at most R.
  template <int R>
  static void score_block(const AttentionArgs& args, const Tile& tile, const AttentionScratch& in, int row, int count,
                          ReadAhead& ahead) {
    if (count == R) {
      score_rows<R>(args, tile, in, row, ahead);
    } else if constexpr (R > 1) {
      score_block<R - 1>(args, tile, in, row, count, ahead);
    }
  }

  template <int R>
  static void value_block(const AttentionArgs& args, const Tile& tile, const Span& span, const AttentionScratch& in,
                          int row, int count) {
    if (count == R) {
      value_rows<R>(args, tile, span, in, row);
    } else if constexpr (R > 1) {
      value_block<R - 1>(args, tile, span, in, row, count);
    }
  }

  // Rows [begin, end), which share the KV head whose span is decoded.
  static void attend_span(const AttentionArgs& args, Tile& tile, const Span& span, const AttentionScratch& in,
                          int begin, int end, ReadAhead ahead) {
    const auto block = [end](int row) { return end - row < kBlockRows ? end - row : kBlockRows; };
    for (int row = begin; row < end; row += kBlockRows) score_block<kBlockRows>(args, tile, in, row, block(row), ahead);
    for (int row = begin; row < end; row++) soften_row(args, tile, span, in, row);
    for (int row = begin; row < end; row += kBlockRows) value_block<kBlockRows>(args, tile, span, in, row, block(row));
  }
};

}  // namespace
}  // namespace shardloom
