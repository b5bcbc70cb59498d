// The order in which arranged weights keep their codes and scales (native/README.md has a picture).
//
// Rows go in groups of sixteen, the codes of a group in units of 64 bytes: four bytes of each of the sixteen rows, so that
// the 32-bit lanes of one vector belong to sixteen rows (or those of two vectors to eight rows each).
//   code4  byte j of a row in a unit of 8 inputs holds input j in its low half and input 4 + j in its high half
//   int8   byte j of a row in a unit of 4 inputs is input j
// The scales of a block are those of the sixteen rows side by side; minimums the same. A group takes the bytes that its
// rows take in the order of rows, so a weight is arranged where it is.
//
// This header is compiled with several instruction sets: everything in it has internal linkage.
#pragma once

#include <cstring>

#include "kernels.h"

namespace shardloom {
namespace {

constexpr std::int64_t kGroupRows = 16;
constexpr std::int64_t kUnitBytes = 64;
constexpr std::int64_t kUnitRowBytes = kUnitBytes / kGroupRows;
constexpr std::int64_t kCode4UnitInputs = 8;
constexpr std::int64_t kInt8UnitInputs = 4;

// int16 codes of x: place i of eight holds input kPairOrder[i]. So each 32 bits hold the two inputs whose codes lie in
// bytes 0 and 2, or 1 and 3, of a row in a unit.
constexpr int kPairOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};

// The address of an element of scales or minimums; null in an array that there is not.
inline const void* element_at(const void* values, DType dtype, std::int64_t index) {
  if (values == nullptr) return nullptr;
  return static_cast<const char*>(values) + index * (dtype == DType::f16 ? 2 : 4);
}

// One group of an arranged weight.
struct Group {
  const std::uint8_t* codes;
  const void* scales;
  const void* minimums;  // null for none
  DType value_dtype;     // of scales and minimums
  std::int64_t first_output;
  std::int64_t rows;      // that are rows of the weight: the others are zeros
};

inline std::int64_t group_count(std::int64_t outputs) { return (outputs + kGroupRows - 1) / kGroupRows; }

inline Group group_at(const ArrangedMatrix& matrix, std::int64_t group) {
  const std::int64_t first = group * kGroupRows;
  const std::int64_t left = matrix.outputs - first;
  const DType dtype = matrix.value_dtype;
  if (left < kGroupRows) return {matrix.tail_codes, matrix.tail_scales, matrix.tail_minimums, dtype, first, left};
  const std::int64_t at = group * (matrix.inputs / matrix.block_size) * kGroupRows;
  return {matrix.codes + group * matrix.group_bytes, element_at(matrix.scales, dtype, at),
          element_at(matrix.minimums, dtype, at), dtype, first, kGroupRows};
}

// Inputs of a block of x: the largest of 64, 32 and 16 that a block of weights is a multiple of.
inline std::int64_t activation_block(std::int64_t block_size) {
  return block_size % 64 == 0 ? 64 : block_size % 32 == 0 ? 32 : 16;
}

inline std::int32_t common_divisor(std::int32_t a, std::int32_t b) { return b == 0 ? a : common_divisor(b, a % b); }

template <class Code>
CodeSteps steps_of(const Code (&codebook)[16]) {
  std::int32_t least = codebook[0];
  std::int32_t largest = codebook[0];
  for (const Code code : codebook) {
    least = code < least ? code : least;
    largest = code > largest ? code : largest;
  }
  std::int32_t unit = 0;
  for (const Code code : codebook) unit = common_divisor(unit, code - least);
  if (unit == 0) unit = 1;
  return {least, unit, (largest - least) / unit};
}

// Code of an input of one row of a group, 0 to 15.
inline int code4_at(const std::uint8_t* group, std::int64_t row, std::int64_t input) {
  const std::int64_t place = input % kCode4UnitInputs;
  const std::uint8_t byte =
      group[input / kCode4UnitInputs * kUnitBytes + row * kUnitRowBytes + place % kUnitRowBytes];
  return place < kUnitRowBytes ? byte & 15 : byte >> 4;
}

inline int int8_at(const std::uint8_t* group, std::int64_t row, std::int64_t input) {
  const std::uint8_t byte =
      group[input / kInt8UnitInputs * kUnitBytes + row * kUnitRowBytes + input % kInt8UnitInputs];
  return static_cast<std::int8_t>(byte);
}

// Eight codes of code4 in the order of rows, the even input in the high half of a byte, to the order of a unit.
inline void arrange_code4_unit(const std::uint8_t* from, std::uint8_t* to) {
  std::uint8_t codes[kCode4UnitInputs];
  for (int i = 0; i < 4; i++) {
    codes[2 * i] = from[i] >> 4;
    codes[2 * i + 1] = from[i] & 15;
  }
  for (int j = 0; j < 4; j++) to[j] = static_cast<std::uint8_t>(codes[j] | (codes[j + 4] << 4));
}

// `rows` rows of `row_bytes` bytes from `from` on become a group at `to`, rows of zeros after them.
inline void arrange_codes(const std::uint8_t* from, std::int64_t rows, std::int64_t row_bytes, bool code4,
                          std::uint8_t* to) {
  std::memset(to, 0, static_cast<std::size_t>(row_bytes * kGroupRows));
  for (std::int64_t row = 0; row < rows; row++) {
    const std::uint8_t* source = from + row * row_bytes;
    for (std::int64_t unit = 0; unit < row_bytes / kUnitRowBytes; unit++) {
      std::uint8_t* target = to + unit * kUnitBytes + row * kUnitRowBytes;
      if (code4) {
        arrange_code4_unit(source + unit * kUnitRowBytes, target);
      } else {
        std::memcpy(target, source + unit * kUnitRowBytes, kUnitRowBytes);
      }
    }
  }
}

// The same of scales or minimums, `blocks` a row. A Value is as wide as one of them.
template <class Value>
void arrange_values(const Value* from, std::int64_t rows, std::int64_t blocks, Value* to) {
  std::memset(to, 0, static_cast<std::size_t>(blocks * kGroupRows) * sizeof(Value));
  for (std::int64_t row = 0; row < rows; row++) {
    for (std::int64_t block = 0; block < blocks; block++) to[block * kGroupRows + row] = from[row * blocks + block];
  }
}

}  // namespace
}  // namespace shardloom
