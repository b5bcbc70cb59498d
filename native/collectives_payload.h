// What collectives do to elements. Knows no region and no waiting; src/collectives/payload.ts is its twin.
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

/**
 * out[i] = copy[i] = sources[0][i] + sources[1][i] + ... for i in [first, last), in that order, each sum rounded to
 * f32; a NaN becomes the quiet NaN 0x7fc00000. `out` may be one of the sources; `copy`, which may be null, is none.
 */
void sum_in_rank_order(float* out, float* copy, const float* const* sources, std::uint32_t ranks, std::size_t first,
                       std::size_t last);

/** First element of a rank's part of `count` elements, which is whole lines of 64 bytes and ends at the next rank's. */
std::size_t part_begin(std::size_t count, std::uint32_t rank, std::uint32_t ranks);

}  // namespace shardloom
