// Keys and values of one span of positions, read from the paged cache and decoded to f32, for any vector type `V`.
#pragma once

#include "numbers.h"
#include "unroll.h"

namespace shardloom {
namespace {

// Positions that are worked on together; also the unit in which the softmax is rescaled.
constexpr std::int64_t kSpan = 32;

// The positions of a span that any row of a tile sees; lane j stands for position `begin + j`.
struct Span {
  std::int64_t begin;
  std::int64_t first;
  std::int64_t end;
};

// Decoded entries of one KV head, and what is computed from them.
struct AttentionScratch {
  float* keys;    // [head_size, kSpan]: transposed
  float* values;  // [kSpan, value_stride]
  float* scores;  // [rows, kSpan]
  std::int64_t value_stride;
};

// The cache entries of one KV head in a span.
template <class T>
struct Entries {
  const T* keys;
  const T* values;
  const std::int64_t* offsets;
  Span span;
};

// Prefetches the keys or the values of a span, a few cache lines at a time: as many at once would wait for each other
// and hold up the arithmetic that they are to overlap with.
struct ReadAhead {
  static constexpr std::int64_t kLineBytes = 64;

  const char* base;
  std::int64_t element_bytes;
  std::int64_t row_bytes;
  const std::int64_t* offsets;
  std::int64_t lane;
  std::int64_t end;
  std::int64_t byte;

  // Nothing is left once all lines have been asked for.
  void lines(std::int64_t count) {
    for (; count > 0 && lane < end; count--) {
      __builtin_prefetch(base + offsets[lane] * element_bytes + byte);
      byte += kLineBytes;
      if (byte >= row_bytes) {
        byte = 0;
        lane++;
      }
    }
  }
};

// What a position outside a span's range is read from.
alignas(64) constexpr unsigned char kZeroHead[kMaxHeadSize * sizeof(float)] = {};

template <class V>
struct AttentionCache {
  // Element offsets in the cache of the positions of a span, for the first KV head of a tile. The next KV head is
  // head_step further.
  static void locate(const AttentionArgs& args, const std::int32_t* table, std::int64_t kv_head, const Span& span,
                     std::int64_t (&offsets)[kSpan]) {
    for (std::int64_t p = span.first; p < span.end; p++) {
      const std::int64_t block = table[p / args.block_size];
      const std::int64_t slot = (block * args.kv_heads + kv_head) * args.block_size + p % args.block_size;
      offsets[p - span.begin] = slot * args.head_size;
    }
  }

  static std::int64_t head_step(const AttentionArgs& args) { return args.block_size * args.head_size; }

  template <class T>
  static ReadAhead read_ahead(const AttentionArgs& args, const T* base, const Entries<T>& entries) {
    constexpr std::int64_t kBytes = sizeof(T);
    return {reinterpret_cast<const char*>(base),
            kBytes,
            args.head_size * kBytes,
            entries.offsets,
            entries.span.first - entries.span.begin,
            entries.span.end - entries.span.begin,
            0};
  }

  // Columns of keys that are transposed at a time. Two bf16 travel through the shuffles as one lane.
  template <class T>
  static constexpr std::int64_t kSquareColumns = std::is_same_v<T, bf16> ? 2 * V::kLanes : V::kLanes;

  // out[c][i] = rows[i][c] for kLanes rows and the first `columns` columns, at most kSquareColumns.
  template <class T>
  static void transpose_square(const T* const* rows, std::int64_t d, std::int64_t columns, float* out) {
    V square[V::kLanes];
    if (columns == V::kLanes) {
      repeat<V::kLanes>([&](auto i) { square[i] = V::load(rows[i] + d); });
    } else {
      repeat<V::kLanes>([&](auto i) { square[i] = V::load_first(rows[i] + d, columns); });
    }
    V::transpose(square);
    repeat<V::kLanes>([&](auto c) {
      if (c < columns) square[c].store(out + c * kSpan);
    });
  }

  static void transpose_square(const bf16* const* rows, std::int64_t d, std::int64_t columns, float* out) {
    V pairs[V::kLanes];
    if (columns == 2 * V::kLanes) {
      repeat<V::kLanes>([&](auto i) { pairs[i] = V::load_pairs(rows[i] + d); });
    } else {
      repeat<V::kLanes>([&](auto i) { pairs[i] = V::load_first_pairs(rows[i] + d, columns); });
    }
    V::transpose(pairs);
    repeat<V::kLanes>([&](auto c) {
      if (2 * c < columns) V::first_of_pairs(pairs[c]).store(out + 2 * c * kSpan);
      if (2 * c + 1 < columns) V::second_of_pairs(pairs[c]).store(out + (2 * c + 1) * kSpan);
    });
  }

  template <class T>
  static void decode_keys(const AttentionArgs& args, const Entries<T>& entries, const AttentionScratch& to,
                          ReadAhead ahead) {
    constexpr std::int64_t kColumns = kSquareColumns<T>;
    constexpr std::int64_t kSquareLines = V::kLanes * kColumns * sizeof(T) / ReadAhead::kLineBytes;
    const Span& span = entries.span;
    const T* rows[kSpan];
    for (std::int64_t j = 0; j < kSpan; j++) {
      const bool inside = span.begin + j >= span.first && span.begin + j < span.end;
      rows[j] = inside ? entries.keys + entries.offsets[j] : reinterpret_cast<const T*>(kZeroHead);
    }
    for (std::int64_t d = 0; d < args.head_size; d += kColumns) {
      const std::int64_t columns = args.head_size - d < kColumns ? args.head_size - d : kColumns;
      for (std::int64_t j = 0; j < kSpan; j += V::kLanes) {
        ahead.lines(kSquareLines);
        transpose_square(rows + j, d, columns, to.keys + d * kSpan + j);
      }
    }
  }

  template <class T>
  static void decode_values(const AttentionArgs& args, const Entries<T>& entries, const AttentionScratch& to) {
    const Span& span = entries.span;
    for (std::int64_t j = span.first - span.begin; j < span.end - span.begin; j++) {
      const T* row = entries.values + entries.offsets[j];
      float* out = to.values + j * to.value_stride;
      std::int64_t d = 0;
      for (; d + V::kLanes <= args.head_size; d += V::kLanes) V::load(row + d).store(out + d);
      if (d < args.head_size) V::load_first(row + d, args.head_size - d).store(out + d);
    }
  }
};

}  // namespace
}  // namespace shardloom
