// Paged attention for any vector type `V`: online softmax over spans of kSpan positions.
//
// The rows of a tile are pairs of a query and a head. Keys and values are decoded once for all rows that read the same
// KV head, and a tile takes several KV heads where they have few rows, for memory holds them side by side. Keys of a
// span are transposed: a lane stands for a position, and a score sums along the head in order. Spans begin at multiples
// of kSpan, and a row leaves out positions it does not see; so its result is the same, bit for bit, in any tile:
// prefill in one piece, in chunks, or one token at a time.
#pragma once

#include "attention_rows_simd.h"

namespace shardloom {
namespace {

template <class V>
struct Attention {
  using Cache = AttentionCache<V>;
  using Rows = AttentionRows<V>;
  using Tile = typename Rows::Tile;
  static constexpr int kHeadRows = Rows::kHeadRows;
  static constexpr int kTileRows = Rows::kTileRows;

  static AttentionScratch scratch(const AttentionArgs& args) {
    float* start = static_cast<float*>(args.workspace);
    const std::int64_t stride = (args.head_size + V::kLanes - 1) / V::kLanes * V::kLanes;
    return {start, start + kMaxHeadSize * kSpan, start + 2 * kMaxHeadSize * kSpan, stride};
  }
  static_assert((2 * kMaxHeadSize + kTileRows) * kSpan * sizeof(float) <= kWorkspaceBytes);

  // Rows stand in the order of their queries: the first sees the earliest position, the last the latest.
  static Span span_at(const Tile& tile, std::int64_t begin) {
    const std::int64_t first = tile.first[0];
    const std::int64_t end = tile.end[tile.rows - 1];
    return {begin, begin > first ? begin : first, begin + kSpan < end ? begin + kSpan : end};
  }

  template <class T>
  static void attend_tile(const AttentionArgs& args, Tile& tile, const std::int32_t* table) {
    const AttentionScratch in = scratch(args);
    std::int64_t offsets[2][kSpan];
    int current = 0;
    Span span = span_at(tile, tile.first[0] / kSpan * kSpan);
    Cache::locate(args, table, tile.first_kv_head, span, offsets[current]);
    const auto entries_of = [&](int head, int which, const Span& at) {
      const std::int64_t step = head * Cache::head_step(args);
      return Entries<T>{static_cast<const T*>(args.keys) + step, static_cast<const T*>(args.values) + step,
                        offsets[which], at};
    };
    while (span.first < span.end) {
      const Span next = span_at(tile, span.begin + kSpan);
      Cache::locate(args, table, tile.first_kv_head, next, offsets[1 - current]);
      for (int h = 0; h < tile.kv_heads; h++) {
        const Entries<T> entries = entries_of(h, current, span);
        const bool last = h + 1 == tile.kv_heads;
        const Entries<T> ahead = last ? entries_of(0, 1 - current, next) : entries_of(h + 1, current, span);
        Cache::decode_keys(args, entries, in, Cache::read_ahead(args, ahead.keys, ahead));
        Cache::decode_values(args, entries, in);
        Rows::attend_span(args, tile, span, in, tile.row_begin[h], tile.row_begin[h + 1],
                          Cache::read_ahead(args, ahead.values, ahead));
      }
      span = next;
      current = 1 - current;
    }
    for (int row = 0; row < tile.rows; row++) Rows::multiply_row(args, tile.out[row], 1.0f / tile.sum[row]);
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

  // Adds a KV head with rows [begin, begin + rows) of the sequence, counted query by query and within one head by head.
  static void add_rows(const AttentionArgs& args, Tile& tile, std::int64_t sequence, const Heads& heads,
                       std::int64_t begin, std::int64_t rows) {
    const std::int64_t query_start = args.query_starts[sequence];
    const std::int64_t queries = args.query_starts[sequence + 1] - query_start;
    const std::int64_t first_position = args.context_lengths[sequence] - queries;
    for (std::int64_t i = 0; i < rows; i++) {
      const std::int64_t query = (begin + i) / heads.count;
      const std::int64_t column = (heads.begin + (begin + i) % heads.count) * args.head_size;
      const int r = tile.rows++;
      tile.q[r] = args.q + (query_start + query) * args.q_stride + column;
      tile.out[r] = args.out + (query_start + query) * args.out_stride + column;
      tile.end[r] = first_position + query + 1;
      const std::int64_t window_start = tile.end[r] - args.sliding_window;
      tile.first[r] = args.sliding_window > 0 && window_start > 0 ? window_start : 0;
      tile.maximum[r] = Rows::kLowest;
      tile.sum[r] = 0.0f;
      std::memset(tile.out[r], 0, static_cast<std::size_t>(args.head_size) * sizeof(float));
    }
    tile.row_begin[++tile.kv_heads] = tile.rows;
  }

  static void clear(Tile& tile, std::int64_t kv_head) {
    tile.first_kv_head = kv_head;
    tile.kv_heads = 0;
    tile.rows = 0;
    tile.row_begin[0] = 0;
  }

  // KV heads [begin, end) of one sequence.
  template <class T>
  static void attend_sequence(const AttentionArgs& args, std::int64_t sequence, std::int64_t begin, std::int64_t end) {
    const std::int64_t queries = args.query_starts[sequence + 1] - args.query_starts[sequence];
    const std::int32_t* table = args.block_tables + sequence * args.block_table_stride;
    if (queries == 0) return;
    Tile tile;
    clear(tile, begin);
    const auto finish = [&](std::int64_t next_kv_head) {
      if (tile.rows > 0) attend_tile<T>(args, tile, table);
      clear(tile, next_kv_head);
    };
    for (std::int64_t kv_head = begin; kv_head < end; kv_head++) {
      const Heads heads = heads_of(args, kv_head);
      const std::int64_t rows = queries * heads.count;
      // KV heads share a tile only with all of their rows, which then see the same positions.
      const bool shares = rows <= kHeadRows && tile.rows + rows <= kTileRows && tile.kv_heads < kTileRows;
      if (!shares) finish(kv_head);
      for (std::int64_t row = 0; row < rows || row == 0; row += kHeadRows) {
        if (row > 0) finish(kv_head);
        add_rows(args, tile, sequence, heads, row, rows - row < kHeadRows ? rows - row : kHeadRows);
      }
      if (rows > kHeadRows) finish(kv_head + 1);
    }
    finish(end);
  }

  static void run(const AttentionArgs& args, Range units) {
    with_float_type(args.cache_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      std::int64_t unit = units.begin;
      while (unit < units.end) {
        const std::int64_t sequence = unit / args.kv_heads;
        const std::int64_t sequence_end = (sequence + 1) * args.kv_heads;
        const std::int64_t end = sequence_end < units.end ? sequence_end : units.end;
        attend_sequence<T>(args, sequence, unit - sequence * args.kv_heads, end - sequence * args.kv_heads);
        unit = end;
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
