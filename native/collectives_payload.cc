#include "collectives_payload.h"

#include <algorithm>
#include <cstring>

namespace shardloom {
namespace {

using std::size_t;
using std::uint32_t;

constexpr size_t kElementsOfLine = 16;

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

size_t part_begin(size_t count, uint32_t rank, uint32_t ranks) {
  const size_t lines = (count + kElementsOfLine - 1) / kElementsOfLine;
  return std::min(count, lines * rank / ranks * kElementsOfLine);
}

}  // namespace shardloom
