// Blocks of codes (block_split.h) straight to the order of a group (kernels/arranged_layout.h): what splitting them into rows
// and arranging the rows would make, in one pass over bytes that are in the cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "arrange_codes.h"
#include "block_split.h"

namespace shardloom {
namespace {

// The code bytes of a block, from `source` on, of each of four rows, `stride` bytes apart; four rows of a group at `to`.
// Byte i of sixteen holds input i in its low half and input 16 + i in its high half.
inline void arrange_halves(const std::uint8_t* source, std::int64_t stride, std::uint8_t* to) {
  Lanes rows[4];
  for (int i = 0; i < 4; i++) {
    const Lanes codes = load_lanes(source + i * stride);
    const Lanes low = codes & 0x0f0f0f0f;
    const Lanes high = (codes >> 4) & 0x0f0f0f0f;
    rows[i] = __builtin_shufflevector(low, high, 0, 2, 4, 6) | (__builtin_shufflevector(low, high, 1, 3, 5, 7) << 4);
  }
  store_square(rows, to);
}

// The sixteen rows of a whole group, `stride` bytes apart, of blocks that begin with `header_bytes` and have 16 bytes of
// 4-bit codes or 32 of 8-bit ones after them. Headers go to `headers`, row after row.
template <int header_bytes, bool four_bits>
inline void arrange_small_blocks(const std::uint8_t* rows, std::int64_t stride, std::int64_t blocks, std::uint8_t* to,
                                 std::uint8_t* headers) {
  constexpr int kCodeBytes = four_bits ? 16 : 32;
  constexpr int kBlockBytes = header_bytes + kCodeBytes;
  constexpr int kQuadRows = 4;
  for (std::int64_t block = 0; block < blocks; block++, to += kCodeBytes * kGroupRows) {
    for (std::int64_t row = 0; row < kGroupRows; row += kQuadRows) {
      const std::uint8_t* source = rows + row * stride + block * kBlockBytes;
      for (int i = 0; i < kQuadRows; i++) {
        std::memcpy(headers + ((row + i) * blocks + block) * header_bytes, source + i * stride, header_bytes);
      }
      std::uint8_t* place = to + row * kUnitRowBytes;
      if constexpr (four_bits) {
        arrange_halves(source + header_bytes, stride, place);
      } else {
        arrange_square<false>(source + header_bytes, stride, place);
        arrange_square<false>(source + header_bytes + kCodeBytes / 2, stride, place + kCodeBytes / 2 * kGroupRows);
      }
    }
  }
}

// The sixteen rows of a whole group, `blocks` blocks each, one after another; `scratch` has room for their codes.
inline void arrange_block_group(const BlockLayout& layout, const std::uint8_t* rows, std::int64_t blocks,
                                std::uint8_t* to, std::uint8_t* headers, std::uint8_t* scratch) {
  const std::int64_t stride = blocks * layout.block_bytes;
  if (is_small(layout, 2, 16, true)) return arrange_small_blocks<2, true>(rows, stride, blocks, to, headers);
  if (is_small(layout, 4, 16, true)) return arrange_small_blocks<4, true>(rows, stride, blocks, to, headers);
  if (is_small(layout, 2, 32, false)) return arrange_small_blocks<2, false>(rows, stride, blocks, to, headers);
  split_blocks(layout, rows, kGroupRows * blocks, scratch, headers);
  const std::int64_t row_bytes = blocks * layout.code_bytes();
  (layout.four_bits ? arrange_whole_group<true> : arrange_whole_group<false>)(scratch, row_bytes, to);
}

// Some blocks of one row, whose codes begin at byte `first` of the row, to row `row` of a group; `scratch` has room for
// their codes.
inline void arrange_row_blocks(const BlockLayout& layout, const std::uint8_t* source, std::int64_t count,
                               std::int64_t row, std::int64_t first, std::uint8_t* group, std::uint8_t* headers,
                               std::uint8_t* scratch) {
  split_blocks(layout, source, count, scratch, headers);
  std::uint8_t* to = group + first * kGroupRows + row * kUnitRowBytes;
  const std::int64_t bytes = count * layout.code_bytes();
  for (std::int64_t at = 0; at < bytes; at += kUnitRowBytes, to += kUnitBytes) {
    if (layout.four_bits) {
      arrange_code4_unit(scratch + at, to);
    } else {
      std::memcpy(to, scratch + at, kUnitRowBytes);
    }
  }
}

}  // namespace
}  // namespace shardloom
