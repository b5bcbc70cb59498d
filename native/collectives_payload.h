// How collectives move elements; how they sum them is kernels/rank_sum_*. Knows no region and no waiting; src/collectives/payload.ts is its twin.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardloom {

/** Row-major 4-byte elements. */
struct ConstMatrix {
  const std::uint32_t* data;
  std::size_t columns;
};
struct Matrix {
  std::uint32_t* data;
  std::size_t columns;
};

/** Elements [first, first + count) of the leading `width` columns, counted row by row: copied out of a matrix. */
void pack_columns(std::uint32_t* destination, ConstMatrix source, std::size_t width, std::size_t first,
                  std::size_t count);

/** The inverse of pack_columns: the rows begin at column `offset` of the destination. */
void unpack_columns(Matrix destination, std::size_t offset, const std::uint32_t* source, std::size_t width,
                    std::size_t first, std::size_t count);

/** First element of a rank's part of `count` elements, which is whole lines of 64 bytes and ends at the next rank's. */
std::size_t part_begin(std::size_t count, std::uint32_t rank, std::uint32_t ranks);

}  // namespace shardloom
