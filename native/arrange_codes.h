// Codes from the order of rows to that of a group (kernels/arranged_layout.h says which), as fast as memory gives them: what
// arrange_codes there does byte by byte, by vectors that every CPU has. A line of 64 bytes of each row at a time, so that
// rows which compete for the same cache sets are read once.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/arranged_layout.h"

namespace shardloom {
namespace {

// Four units of one row, or one unit of four rows.
using Lanes = std::uint32_t __attribute__((vector_size(16)));

constexpr std::int64_t kLineBytes = 64;

inline Lanes load_lanes(const std::uint8_t* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store_lanes(std::uint8_t* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// arrange_code4_unit in each lane: even inputs in high halves, odd ones in low halves, become the first four and the last
// four inputs.
inline Lanes arrange_code4_lanes(Lanes codes) {
  const Lanes even = (codes >> 4) & 0x0f0f0f0f;
  const Lanes odd = codes & 0x0f0f0f0f;
  const Lanes even_pairs = (even | (even >> 12)) & 0xffff;
  const Lanes odd_pairs = (odd | (odd >> 12)) & 0xffff;
  const Lanes even_bytes = (even_pairs | (even_pairs << 8)) & 0x00ff00ff;
  const Lanes odd_bytes = (odd_pairs | (odd_pairs << 8)) & 0x00ff00ff;
  return even_bytes | (odd_bytes << 8);
}

// Four units of each of four rows, unit after unit, to their places in a group.
inline void store_square(const Lanes (&rows)[4], std::uint8_t* to) {
  const Lanes low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Lanes low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Lanes high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Lanes high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  store_lanes(to, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
  store_lanes(to + kUnitBytes, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
  store_lanes(to + 2 * kUnitBytes, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
  store_lanes(to + 3 * kUnitBytes, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
}

// Four units of four rows, from `from` on, to their places in a group.
template <bool code4>
inline void arrange_square(const std::uint8_t* from, std::int64_t row_bytes, std::uint8_t* to) {
  Lanes rows[4];
  for (int i = 0; i < 4; i++) {
    rows[i] = load_lanes(from + i * row_bytes);
    if constexpr (code4) rows[i] = arrange_code4_lanes(rows[i]);
  }
  store_square(rows, to);
}

// The sixteen rows of a whole group, `row_bytes` a multiple of a unit's share of them, become a group at `to`.
template <bool code4>
inline void arrange_whole_group(const std::uint8_t* from, std::int64_t row_bytes, std::uint8_t* to) {
  constexpr std::int64_t kSquareBytes = 4 * kUnitRowBytes;
  const std::int64_t squares = row_bytes / kSquareBytes * kSquareBytes;
  for (std::int64_t line = 0; line < squares; line += kLineBytes) {
    const std::int64_t end = line + kLineBytes < squares ? line + kLineBytes : squares;
    for (std::int64_t row = 0; row < kGroupRows; row += 4) {
      for (std::int64_t at = line; at < end; at += kSquareBytes) {
        arrange_square<code4>(from + row * row_bytes + at, row_bytes, to + at * kGroupRows + row * kUnitRowBytes);
      }
    }
  }
  for (std::int64_t at = squares; at < row_bytes; at += kUnitRowBytes) {
    for (std::int64_t row = 0; row < kGroupRows; row++) {
      const std::uint8_t* source = from + row * row_bytes + at;
      std::uint8_t* target = to + at * kGroupRows + row * kUnitRowBytes;
      if constexpr (code4) {
        arrange_code4_unit(source, target);
      } else {
        std::memcpy(target, source, kUnitRowBytes);
      }
    }
  }
}

}  // namespace
}  // namespace shardloom
