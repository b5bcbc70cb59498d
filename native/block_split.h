// Takes blocks of codes apart, as src/checkpoint/block-layout.ts says: their headers to one place, their codes to another in
// the order of execution formats. It keeps up with reads from the page cache: whole words at a time, and sizes known when
// this is compiled for the layouts that have a few bytes a block.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace shardloom {

struct BlockLayout {
  std::int64_t block_bytes;
  std::int64_t codes_offset;
  std::int64_t groups;
  std::int64_t group_bytes;
  bool four_bits;
  std::int64_t header_offset;
  std::int64_t header_bytes;

  std::int64_t code_bytes() const { return groups * group_bytes; }
};

namespace {

// Eight pairs of bytes, and eight bytes.
using Bytes8 = std::uint8_t __attribute__((vector_size(8)));
using Pairs8 = std::uint16_t __attribute__((vector_size(16)));

static_assert(std::endian::native == std::endian::little, "pairs of bytes begin with the low one");

// Byte i of `bytes` holds element i in its low half and element `bytes` + i in its high half; `out` gets neighbours, the
// first in the high half.
inline void pack_neighbours(const std::uint8_t* source, std::int64_t bytes, std::uint8_t* out) {
  const std::int64_t half = bytes / 2;
  std::int64_t i = 0;
  for (; i + 8 <= half; i += 8) {
    Pairs8 pairs;
    std::memcpy(&pairs, source + 2 * i, sizeof pairs);
    const Pairs8 first = ((pairs << 4) & 0xf0) | ((pairs >> 8) & 0x0f);
    const Pairs8 second = (pairs & 0xf0) | (pairs >> 12);
    const Bytes8 first_bytes = __builtin_convertvector(first, Bytes8);
    const Bytes8 second_bytes = __builtin_convertvector(second, Bytes8);
    std::memcpy(out + i, &first_bytes, sizeof first_bytes);
    std::memcpy(out + half + i, &second_bytes, sizeof second_bytes);
  }
  for (const std::uint8_t* pair = source + 2 * i; i < half; i++, pair += 2) {
    out[i] = static_cast<std::uint8_t>(((pair[0] & 15) << 4) | (pair[1] & 15));
    out[half + i] = static_cast<std::uint8_t>((pair[0] & 0xf0) | (pair[1] >> 4));
  }
}

inline void split_any_blocks(const BlockLayout& layout, const std::uint8_t* source, std::int64_t count,
                             std::uint8_t* codes, std::uint8_t* headers) {
  const std::int64_t code_bytes = layout.code_bytes();
  for (std::int64_t block = 0; block < count; block++, source += layout.block_bytes, codes += code_bytes) {
    // Blocks without a header have no place for headers: a null pointer, which memcpy may not be given.
    if (layout.header_bytes > 0) {
      std::memcpy(headers + block * layout.header_bytes, source + layout.header_offset,
                  static_cast<std::size_t>(layout.header_bytes));
    }
    const std::uint8_t* stored = source + layout.codes_offset;
    if (!layout.four_bits) {
      std::memcpy(codes, stored, static_cast<std::size_t>(code_bytes));
      continue;
    }
    for (std::int64_t at = 0; at < code_bytes; at += layout.group_bytes) {
      pack_neighbours(stored + at, layout.group_bytes, codes + at);
    }
  }
}

// Blocks that begin with their header, one group of codes after it.
template <int header_bytes, int code_bytes, bool four_bits>
inline void split_small_blocks(const std::uint8_t* source, std::int64_t count, std::uint8_t* codes,
                               std::uint8_t* headers) {
  constexpr int kBlockBytes = header_bytes + code_bytes;
  for (std::int64_t block = 0; block < count; block++, source += kBlockBytes, codes += code_bytes) {
    std::memcpy(headers + block * header_bytes, source, header_bytes);
    if constexpr (four_bits) {
      pack_neighbours(source + header_bytes, code_bytes, codes);
    } else {
      std::memcpy(codes, source + header_bytes, code_bytes);
    }
  }
}

// Whether blocks begin with so many bytes of header, and one group of codes comes after it.
inline bool is_small(const BlockLayout& layout, int header_bytes, int code_bytes, bool four_bits) {
  return layout.header_offset == 0 && layout.codes_offset == header_bytes && layout.header_bytes == header_bytes &&
         layout.groups == 1 && layout.group_bytes == code_bytes && layout.four_bits == four_bits &&
         layout.block_bytes == header_bytes + code_bytes;
}

inline void split_blocks(const BlockLayout& layout, const std::uint8_t* source, std::int64_t count, std::uint8_t* codes,
                         std::uint8_t* headers) {
  if (is_small(layout, 2, 16, true)) return split_small_blocks<2, 16, true>(source, count, codes, headers);
  if (is_small(layout, 4, 16, true)) return split_small_blocks<4, 16, true>(source, count, codes, headers);
  if (is_small(layout, 2, 32, false)) return split_small_blocks<2, 32, false>(source, count, codes, headers);
  split_any_blocks(layout, source, count, codes, headers);
}

}  // namespace
}  // namespace shardloom
