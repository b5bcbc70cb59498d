// Paged attention for any vector type `V`: online softmax over spans of kSpan positions.
//
// The rows of a tile are pairs of a query and a head. Keys and values are read once for all rows that share a KV head,
// and a tile takes several KV heads where they have few rows, for memory holds them side by side. Many rows work on a
// span decoded to f32, a few on the cache itself. A lane stands for a position, and a score sums along the head in order.
//
// Spans begin at multiples of kSpan, and a row leaves out positions that it does not see. Each partition of the context
// has a softmax of its own, and those of a row are merged in order. So a row's result is the same, bit for bit, in any
// tile and however partitions are spread over threads: prefill in one piece, in chunks, or one token at a time.
#pragma once

#include "attention_rows_simd.h"
#include "attention_units.h"

namespace shardloom {
namespace {

template <class V>
struct Attention {
  using Cache = AttentionCache<V>;
  using Rows = AttentionRows<V>;
  using Tile = typename Rows::Tile;
  using Places = typename Cache::Places;
  static constexpr int kTileRows = Rows::kTileRows;
  // Up to this many rows of a KV head read the cache itself, block of rows by block of rows.
  static constexpr int kDirectRows = 12;

  // Parts of the workspace.
  struct Scratch {
    float* keys;    // [head_size, kSpan]
    float* values;  // [kSpan, stride]
    float* queries; // [kTileRows, stride]
    const Places* places;  // of a span in `keys` and `values`
  };
  static_assert((2 * kSpan * kMaxHeadSize + 2 * kTileRows * kMaxHeadSize + kTileRows * kSpan) * sizeof(float) <=
                kWorkspaceBytes);

  // Fills `places` for spans that are decoded.
  static Scratch prepare(const AttentionArgs& args, Tile& tile, Places& places) {
    float* start = static_cast<float*>(args.workspace);
    tile.stride = (args.head_size + V::kLanes - 1) / V::kLanes * V::kLanes;
    tile.sums = start + 2 * kSpan * kMaxHeadSize;
    tile.scores = tile.sums + kTileRows * kMaxHeadSize;
    for (int v = 0; v < Cache::kVectors; v++) places.keys[v] = v * V::kLanes;
    for (std::int64_t j = 0; j < kSpan; j++) places.values[j] = j * tile.stride;
    return {start, start + kSpan * kMaxHeadSize, tile.scores + kTileRows * kSpan, &places};
  }

  struct Totals {
    float maximum[kTileRows];
    float total[kTileRows];
    bool begun[kTileRows];
  };

  // Rows stand in the order of their queries: the first sees the earliest position, the last the latest.
  static Span span_at(const Tile& tile, std::int64_t begin, std::int64_t partition_end) {
    const std::int64_t first = tile.first[0];
    const std::int64_t last = tile.end[tile.rows - 1];
    const std::int64_t end = last < partition_end ? last : partition_end;
    return {begin, begin > first ? begin : first, begin + kSpan < end ? begin + kSpan : end};
  }

  template <class T>
  using Entries = typename Rows::template Entries<T>;

  // A span of one KV head, as it stands in the cache; `next` is to be read ahead.
  template <class T>
  struct Source {
    const T* keys;
    const T* values;
    const float* scales;
    const Places* places;
    const Span* span;
  };

  template <class T>
  static Entries<T> in_cache(const AttentionArgs& args, const Source<T>& source, const Source<T>& next) {
    return {source.keys, source.values, source.places, args.block_size, next.keys, next.values, next.places};
  }

  template <class T>
  static Entries<float> decoded(const AttentionArgs& args, const Source<T>& source, const Source<T>& next,
                                const Tile& tile, const Scratch& scratch) {
    Cache::decode_keys(args, source.keys, *source.places, *source.span, next.keys, *next.places, scratch.keys);
    Cache::decode_values(args, source.values, *source.places, *source.span, next.values, *next.places, scratch.values,
                         tile.stride);
    return {scratch.keys, scratch.values, scratch.places, kSpan, nullptr, nullptr, nullptr};
  }

  // The spans of one partition, over all KV heads of the tile.
  template <class T>
  static void attend_partition(const AttentionArgs& args, Tile& tile, const Scratch& scratch,
                               const std::int32_t* table, std::int64_t begin) {
    const std::int64_t end = begin + kAttentionPartition;
    Places places[2];
    Span spans[2];
    int current = 0;
    const std::int64_t seen = tile.first[0] > begin ? tile.first[0] / kSpan * kSpan : begin;
    spans[0] = span_at(tile, seen, end);
    Cache::locate(args, table, tile.first_kv_head, spans[0], places[0]);
    const auto source = [&](int head, int which) {
      const std::int64_t step = head * Cache::head_step(args);
      const float* scales = args.scales == nullptr ? nullptr : args.scales + head * Cache::scale_step(args);
      return Source<T>{static_cast<const T*>(args.keys) + step, static_cast<const T*>(args.values) + step, scales,
                       &places[which], &spans[which]};
    };
    const int ahead = Cache::heads_ahead(args, sizeof(T));
    while (spans[current].first < spans[current].end) {
      const int other = 1 - current;
      // Beyond the last span of the partition, that of the next one is read ahead.
      spans[other] = span_at(tile, spans[current].begin + kSpan, end + kSpan);
      const bool more = spans[other].first < spans[other].end;
      if (more) Cache::locate(args, table, tile.first_kv_head, spans[other], places[other]);
      // What comes `ahead` heads later; where that is beyond the heads of the next span, the last of these.
      const auto later = [&](int h) {
        if (h + ahead < tile.kv_heads) return source(h + ahead, current);
        if (!more) return source(h, current);
        const int beyond = h + ahead - tile.kv_heads;
        return source(beyond < tile.kv_heads ? beyond : tile.kv_heads - 1, other);
      };
      for (int h = 0; h < tile.kv_heads; h++) {
        const int from = tile.row_begin[h];
        const int to = tile.row_begin[h + 1];
        const Source<T> own = source(h, current);
        const Source<T> next = later(h);
        if constexpr (std::is_same_v<T, std::int8_t>) {
          Cache::load_scales(args, own.scales, *own.places, *own.span, next.scales, *next.places, tile.key_scales,
                             tile.value_scales);
        }
        if (to - from <= kDirectRows && Cache::aligned(args)) {
          Rows::template attend_span<true>(args, tile, spans[current], in_cache(args, own, next), from, to);
        } else {
          Rows::template attend_span<false>(args, tile, spans[current], decoded(args, own, next, tile, scratch),
                                            from, to);
        }
      }
      if (spans[other].begin >= end) break;
      current = other;
    }
  }

  static void begin_partition(Tile& tile) {
    for (int row = 0; row < tile.rows; row++) tile.maximum[row] = Rows::kLowest;
    std::memset(tile.totals, 0, static_cast<std::size_t>(tile.rows) * V::kLanes * sizeof(float));
    std::memset(tile.sums, 0, static_cast<std::size_t>(tile.rows * tile.stride) * sizeof(float));
  }

  static bool sees(const Tile& tile, int row, std::int64_t begin) {
    return tile.first[row] < begin + kAttentionPartition && tile.end[row] > begin;
  }

  // into = into * a + from * b, `count` elements.
  static void blend(float* into, float a, const float* from, float b, std::int64_t count) {
    const V va = V::set(a);
    const V vb = V::set(b);
    std::int64_t d = 0;
    for (; d + V::kLanes <= count; d += V::kLanes) V::fma(V::load(into + d), va, V::load(from + d) * vb).store(into + d);
    if (d < count) {
      const std::int64_t rest = count - d;
      V::fma(V::load_first(into + d, rest), va, V::load_first(from + d, rest) * vb).store_first(into + d, rest);
    }
  }

  // Merges the softmax over one more partition into that over those before: what `out` holds, its maximum and total.
  static void merge(float* out, float& maximum, float& total, const float* sums, float own_maximum, float own_total,
                    std::int64_t head_size) {
    const float larger = own_maximum > maximum ? own_maximum : maximum;
    const float a = Rows::exp_of(maximum - larger);
    const float b = Rows::exp_of(own_maximum - larger);
    blend(out, a, sums, b, head_size);
    total = total * a + own_total * b;
    maximum = larger;
  }

  static void finish(float* out, float total, std::int64_t head_size) {
    const float factor = 1.0f / total;
    for (std::int64_t d = 0; d < head_size; d++) out[d] *= factor;
  }

  static void keep(const AttentionArgs& args, const Tile& tile, const AttentionPiece& piece) {
    for (int row = 0; row < tile.rows; row++) {
      float* partial = partial_of(args, piece.sequence, piece.number, tile.query[row], tile.head[row]);
      partial[0] = tile.maximum[row];
      partial[1] = Rows::total_of(tile, row);
      std::memcpy(partial + kPartialExtra, tile.sums + row * tile.stride,
                  static_cast<std::size_t>(args.head_size) * sizeof(float));
    }
  }

  static void add(const AttentionArgs& args, const Tile& tile, Totals& totals, std::int64_t begin) {
    for (int row = 0; row < tile.rows; row++) {
      if (!sees(tile, row, begin)) continue;
      const float* sums = tile.sums + row * tile.stride;
      if (totals.begun[row]) {
        merge(tile.out[row], totals.maximum[row], totals.total[row], sums, tile.maximum[row],
              Rows::total_of(tile, row), args.head_size);
        continue;
      }
      totals.begun[row] = true;
      totals.maximum[row] = tile.maximum[row];
      totals.total[row] = Rows::total_of(tile, row);
      std::memcpy(tile.out[row], sums, static_cast<std::size_t>(args.head_size) * sizeof(float));
    }
  }

  static std::int64_t partition_at(std::int64_t position) { return position / kAttentionPartition * kAttentionPartition; }

  template <class T>
  static void attend_tile(const AttentionArgs& args, Tile& tile, const AttentionPiece& piece) {
    Places decoded_places;
    const Scratch scratch = prepare(args, tile, decoded_places);
    for (int row = 0; row < tile.rows; row++) {
      float* copy = scratch.queries + row * tile.stride;
      std::memcpy(copy, tile.q[row], static_cast<std::size_t>(args.head_size) * sizeof(float));
      tile.q[row] = copy;
    }
    const std::int32_t* table = args.block_tables + piece.sequence * args.block_table_stride;
    const std::int64_t first = partition_at(tile.first[0]);
    const std::int64_t end = tile.end[tile.rows - 1];
    if (is_split(args, piece.sequence)) {
      begin_partition(tile);
      attend_partition<T>(args, tile, scratch, table, first + piece.number * kAttentionPartition);
      keep(args, tile, piece);
      return;
    }
    Totals totals;
    for (int row = 0; row < tile.rows; row++) totals.begun[row] = false;
    for (std::int64_t begin = first; begin < end; begin += kAttentionPartition) {
      begin_partition(tile);
      attend_partition<T>(args, tile, scratch, table, begin);
      add(args, tile, totals, begin);
    }
    for (int row = 0; row < tile.rows; row++) finish(tile.out[row], totals.total[row], args.head_size);
  }

  // Adds a KV head with rows [begin, begin + rows) of the sequence, counted query by query and within one head by head.
  static void add_rows(const AttentionArgs& args, Tile& tile, std::int64_t sequence, const Heads& heads,
                       std::int64_t begin, std::int64_t rows) {
    const std::int64_t query_start = args.query_starts[sequence];
    for (std::int64_t i = 0; i < rows; i++) {
      const int r = tile.rows++;
      tile.query[r] = (begin + i) / heads.count;
      tile.head[r] = heads.begin + (begin + i) % heads.count;
      const std::int64_t column = tile.head[r] * args.head_size;
      tile.q[r] = args.q + (query_start + tile.query[r]) * args.q_stride + column;
      tile.out[r] = args.out + (query_start + tile.query[r]) * args.out_stride + column;
      const Range positions = positions_of(args, sequence, tile.query[r]);
      tile.first[r] = positions.begin;
      tile.end[r] = positions.end;
    }
    tile.row_begin[++tile.kv_heads] = tile.rows;
  }

  static void clear(Tile& tile, std::int64_t kv_head) {
    tile.first_kv_head = kv_head;
    tile.kv_heads = 0;
    tile.rows = 0;
    tile.row_begin[0] = 0;
  }

  // KV heads that share a tile do so with all of their rows, which then see the same positions.
  template <class T>
  static void attend_piece(const AttentionArgs& args, const AttentionPiece& piece) {
    const std::int64_t queries = args.query_starts[piece.sequence + 1] - args.query_starts[piece.sequence];
    const std::int64_t end = piece.first_kv_head + piece.kv_heads;
    Tile tile;
    clear(tile, piece.first_kv_head);
    const auto attend = [&](std::int64_t next_kv_head) {
      if (tile.rows > 0) attend_tile<T>(args, tile, piece);
      clear(tile, next_kv_head);
    };
    const bool tiles = piece.pieces > 1 && !is_split(args, piece.sequence);
    for (std::int64_t kv_head = piece.first_kv_head; kv_head < end; kv_head++) {
      const Heads heads = heads_of(args, kv_head);
      const Range rows = rows_of(args, piece, queries * heads.count);
      const std::int64_t count = rows.end - rows.begin;
      if (tiles || tile.rows + count > kTileRows || tile.kv_heads == kTileRows) attend(kv_head);
      add_rows(args, tile, piece.sequence, heads, rows.begin, count);
    }
    attend(end);
  }

  static void run(const AttentionArgs& args, Range units) {
    with_cache_type(args.cache_dtype, [&](auto* type) {
      for_each_piece(args, units, attend_piece<std::remove_cvref_t<decltype(*type)>>);
    });
  }

  static void combine_row(const AttentionArgs& args, std::int64_t sequence, std::int64_t query, std::int64_t head) {
    float* out = args.out + (args.query_starts[sequence] + query) * args.out_stride + head * args.head_size;
    const SeenPartitions seen(args, sequence, query);
    const float* partial = partial_of(args, sequence, seen.first, query, head);
    float maximum = partial[0];
    float total = partial[1];
    std::memcpy(out, partial + kPartialExtra, static_cast<std::size_t>(args.head_size) * sizeof(float));
    for (std::int64_t p = seen.first + 1; p < seen.end; p++) {
      partial = partial_of(args, sequence, p, query, head);
      merge(out, maximum, total, partial + kPartialExtra, partial[0], partial[1], args.head_size);
    }
    finish(out, total, args.head_size);
  }

  // Puts partitions together.
  static void combine(const AttentionArgs& args, Range rows) { for_each_split_row(args, rows, combine_row); }
};

}  // namespace
}  // namespace shardloom
