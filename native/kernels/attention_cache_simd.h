// Keys and values of one span of positions in the paged cache, for any vector type `V`.
#pragma once

#include "numbers.h"
#include "unroll.h"

namespace shardloom {
namespace {

// Positions that are worked on together; also the unit in which the softmax is rescaled.
constexpr std::int64_t kSpan = 32;
static_assert(kAttentionPartition % kSpan == 0);

// Asks for a line of memory that is needed many lines later, into the second level of caches. The first level has few places
// for lines on their way, and a thread that fills them reads as many bytes as fit into a latency of memory: on Zen 4 12 GB/s, where
// the second level brings 24.
inline void read_ahead(const void* address) { __builtin_prefetch(address, 0, 2); }

// The positions of a span that any row of a tile sees; lane j stands for position `begin + j`.
struct Span {
  std::int64_t begin;
  std::int64_t first;
  std::int64_t end;
};

template <class V>
struct AttentionCache {
  static constexpr int kVectors = static_cast<int>(kSpan) / V::kLanes;
  static constexpr std::int64_t kLineBytes = 64;

  // Element offsets in the cache of what a span needs, for the first KV head of a tile. The next KV head is head_step
  // further.
  struct Places {
    // Of the first element of the keys of each vector of positions; where no row sees any of them, of others.
    std::int64_t keys[kVectors];
    // Of the values of each position; where no row sees it, of another.
    std::int64_t values[kSpan];
    // Of the scale of the first key of each vector of positions, in a cache of i8; those of values are block_size further.
    std::int64_t scales[kVectors];
  };

  // True where each vector of positions lies in one block, so that keys are loaded as they stand.
  static bool aligned(const AttentionArgs& args) { return args.block_size % V::kLanes == 0; }

  // How many KV heads ahead a span is fetched: enough for memory to answer meanwhile.
  static int heads_ahead(const AttentionArgs& args, std::size_t element_bytes) {
    constexpr std::size_t kBytesAhead = 16 * 1024;
    const std::size_t bytes = 2 * static_cast<std::size_t>(kSpan * args.head_size) * element_bytes;
    return bytes >= kBytesAhead ? 1 : static_cast<int>((kBytesAhead + bytes - 1) / bytes);
  }

  // How many elements of the keys of a vector of positions lie in one line of memory: a power of two.
  static std::int64_t rows_of_line(const AttentionArgs& args, std::size_t element_bytes) {
    std::int64_t rows = 1;
    while (2 * rows * args.block_size * static_cast<std::int64_t>(element_bytes) <= kLineBytes) rows *= 2;
    return rows;
  }

  static std::int64_t head_step(const AttentionArgs& args) { return args.block_size * args.head_size; }
  static std::int64_t scale_step(const AttentionArgs& args) { return 2 * args.block_size; }

  static void locate(const AttentionArgs& args, const std::int32_t* table, std::int64_t kv_head, const Span& span,
                     Places& places) {
    if (span.first >= span.end) return;
    const auto head = [&](std::int64_t p) {
      const std::int64_t block = table[p / args.block_size];
      return (block * args.kv_heads + kv_head) * head_step(args);
    };
    // One division a block: a span has few of them.
    std::int64_t j = span.first - span.begin;
    for (std::int64_t p = span.first; p < span.end;) {
      const std::int64_t offset = p % args.block_size;
      const std::int64_t left = args.block_size - offset;
      const std::int64_t count = left < span.end - p ? left : span.end - p;
      const std::int64_t first = head(p) + offset * args.head_size;
      for (std::int64_t i = 0; i < count; i++) places.values[j + i] = first + i * args.head_size;
      j += count;
      p += count;
    }
    for (std::int64_t i = 0; i < span.first - span.begin; i++) places.values[i] = places.values[span.first - span.begin];
    for (; j < kSpan; j++) places.values[j] = places.values[span.end - 1 - span.begin];
    for (int v = 0; v < kVectors; v++) {
      const std::int64_t begin = span.begin + v * V::kLanes;
      const bool seen = begin < span.end && begin + V::kLanes > span.first;
      const std::int64_t p = begin > span.first ? begin : span.first;
      const std::int64_t offset = seen ? begin % args.block_size : 0;
      const std::int64_t first = head(seen ? p : span.first);
      places.keys[v] = first + offset;
      places.scales[v] = first / args.head_size * 2 + offset;
    }
  }

  // The scales of a span of a cache of i8, lane by lane; those of positions that no row sees are anything. Those of the
  // span that comes next are read ahead.
  static void load_scales(const AttentionArgs& args, const float* scales, const Places& places, const Span& span,
                          const float* next_scales, const Places& next, float* of_keys, float* of_values) {
    if (aligned(args)) {
      repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
        const float* own = scales + places.scales[v];
        const float* ahead = next_scales + next.scales[v];
        read_ahead(ahead);
        read_ahead(ahead + args.block_size);
        V::load(own).store(of_keys + v * V::kLanes);
        V::load(own + args.block_size).store(of_values + v * V::kLanes);
      });
      return;
    }
    for (std::int64_t p = span.first; p < span.end; p++) {
      const std::int64_t j = p - span.begin;
      const std::int64_t offset = p % args.block_size;
      const float* own = scales + (places.values[j] / args.head_size - offset) * 2 + offset;
      of_keys[j] = own[0];
      of_values[j] = own[args.block_size];
    }
  }

  // The keys of a span, decoded to out[head_size, kSpan]. Lanes of positions that no row sees hold anything. Those of the
  // span that comes next are read ahead.
  template <class T>
  static void decode_keys(const AttentionArgs& args, const T* keys, const Places& places, const Span& span,
                          const T* next_keys, const Places& next, float* out) {
    if (aligned(args)) {
      for (std::int64_t d = 0; d < args.head_size; d++) {
        repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
          read_ahead(next_keys + next.keys[v] + d * args.block_size);
          V::load(keys + places.keys[v] + d * args.block_size).store(out + d * kSpan + v * V::kLanes);
        });
      }
      return;
    }
    for (std::int64_t p = span.first; p < span.end; p++) {
      const std::int64_t offset = p % args.block_size;
      const T* column = keys + places.values[p - span.begin] - offset * args.head_size + offset;
      for (std::int64_t d = 0; d < args.head_size; d++) {
        out[d * kSpan + p - span.begin] = to_float(column[d * args.block_size]);
      }
    }
  }

  // The values of a span, decoded to out[kSpan, stride].
  template <class T>
  static void decode_values(const AttentionArgs& args, const T* values, const Places& places, const Span& span,
                            const T* next_values, const Places& next, float* out, std::int64_t stride) {
    constexpr std::int64_t kLine = kLineBytes / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t j = span.first - span.begin; j < span.end - span.begin; j++) {
      const T* row = values + places.values[j];
      const T* next_row = next_values + next.values[j];
      for (std::int64_t d = 0; d < args.head_size; d += kLine) read_ahead(next_row + d);
      float* to = out + j * stride;
      std::int64_t d = 0;
      for (; d + V::kLanes <= args.head_size; d += V::kLanes) V::load(row + d).store(to + d);
      if (d < args.head_size) V::load_first(row + d, args.head_size - d).store(to + d);
    }
  }
};

}  // namespace
}  // namespace shardloom
