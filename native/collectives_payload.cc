#include "collectives_payload.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "prefetch.h"

namespace shardloom {
namespace {

using std::size_t;
using std::uint32_t;

// How far ahead of the sum the lines of other ranks are requested. They come one by one out of another core's cache: a
// small all-reduce takes their latency divided by the number under way.
constexpr size_t kPrefetchElements = 512;
constexpr size_t kElementsOfLine = 16;

inline float canonical(float value) {
  return value == value ? value : std::numeric_limits<float>::quiet_NaN();
}

/** Prefetches elements [first, last) of every source other than `own`, which is in this core's cache already. */
inline void request_lines(const float* own, const float* const* sources, uint32_t ranks, size_t first, size_t last) {
  for (uint32_t r = 0; r < ranks; r++) {
    if (sources[r] == own) continue;
    for (size_t i = first; i < last; i += kElementsOfLine) prefetch(sources[r] + i);
  }
}

}  // namespace

void pack_columns(uint32_t* destination, ConstMatrix source, size_t width, size_t first, size_t count) {
  if (count == 0) return;
  size_t row = first / width;
  size_t column = first % width;
  while (count > 0) {
    const size_t run = std::min(width - column, count);
    std::memcpy(destination, source.data + row * source.columns + column, run * sizeof(uint32_t));
    destination += run;
    count -= run;
    row++;
    column = 0;
  }
}

void unpack_columns(Matrix destination, size_t offset, const uint32_t* source, size_t width, size_t first,
                    size_t count) {
  if (count == 0) return;
  size_t row = first / width;
  size_t column = first % width;
  while (count > 0) {
    const size_t run = std::min(width - column, count);
    std::memcpy(destination.data + row * destination.columns + offset + column, source, run * sizeof(uint32_t));
    source += run;
    count -= run;
    row++;
    column = 0;
  }
}

void sum_in_rank_order(float* out, float* copy, const float* const* sources, uint32_t ranks, size_t first,
                       size_t last) {
  constexpr size_t kBlock = 2 * kElementsOfLine;
  // A block is read from all sources before it is written, so `out` may be one of them.
  float sums[kBlock];
  size_t i = first;
  request_lines(out, sources, ranks, first, std::min(last, first + kPrefetchElements));
  for (; i + kBlock <= last; i += kBlock) {
    const size_t ahead = i + kPrefetchElements;
    if (ahead < last) request_lines(out, sources, ranks, ahead, ahead + kBlock);
    std::memcpy(sums, sources[0] + i, sizeof(sums));
    for (uint32_t r = 1; r < ranks; r++) {
      const float* source = sources[r] + i;
      for (size_t j = 0; j < kBlock; j++) sums[j] += source[j];
    }
    for (size_t j = 0; j < kBlock; j++) sums[j] = canonical(sums[j]);
    std::memcpy(out + i, sums, sizeof(sums));
    if (copy != nullptr) std::memcpy(copy + i, sums, sizeof(sums));
  }
  for (; i < last; i++) {
    float sum = sources[0][i];
    for (uint32_t r = 1; r < ranks; r++) sum += sources[r][i];
    out[i] = canonical(sum);
    if (copy != nullptr) copy[i] = out[i];
  }
}

size_t part_begin(size_t count, uint32_t rank, uint32_t ranks) {
  const size_t lines = (count + kElementsOfLine - 1) / kElementsOfLine;
  return std::min(count, lines * rank / ranks * kElementsOfLine);
}

}  // namespace shardloom
