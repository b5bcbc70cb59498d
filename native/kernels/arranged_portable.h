// Linear layers and look-up with arranged weights in plain C++, for codes of any kind: the definition of each level.
#pragma once

#include <cmath>

#include "arranged_layout.h"
#include "linear_portable.h"

namespace shardloom::portable {
namespace {

template <class Code>
const Code* codes_of(const QuantizedRows& x, std::int64_t row) {
  return reinterpret_cast<const Code*>(static_cast<const char*>(x.codes) + row * x.code_stride);
}

// Adds one block of inputs of a group to the sums of one row of x. weights: the block's codes as whole numbers, those of
// kGroupRows rows an input, in the order of x's codes.
template <class Code>
void add_block(const QuantizedRows& x, std::int64_t m, std::int64_t block, const std::int16_t* weights,
               const float* scales, const float* minimums, float* sums) {
  const Code* codes = codes_of<Code>(x, m) + block * x.block;
  std::int32_t dots[kGroupRows] = {};
  for (std::int64_t i = 0; i < x.block; i++) {
    for (int row = 0; row < kGroupRows; row++) dots[row] += codes[i] * weights[i * kGroupRows + row];
  }
  const std::int64_t at = m * x.blocks + block;
  for (int row = 0; row < kGroupRows; row++) {
    sums[row] = std::fma(static_cast<float>(dots[row]), x.scales[at] * scales[row], sums[row]);
    if (minimums != nullptr) sums[row] = std::fma(x.sums[at], minimums[row], sums[row]);
  }
}

// value(codes, row, input): the whole number that stands for an element of a group.
template <class Code, class Value>
void arranged_integers(const ArrangedLinearArgs& args, const ArrangedMatrix& matrix, Range groups, Value value) {
  const std::int64_t per_scale = matrix.block_size / args.x.block;
  for (std::int64_t g = groups.begin; g < groups.end; g++) {
    const Group group = group_at(matrix, g);
    for (std::int64_t m = 0; m < args.rows; m++) {
      for (std::int64_t row = 0; row < group.rows; row++) args.out[m * args.out_stride + group.first_output + row] = 0;
    }
    for (std::int64_t block = 0; block < args.x.blocks; block++) {
      std::int16_t weights[64 * kGroupRows];
      for (std::int64_t i = 0; i < args.x.block; i++) {
        const std::int64_t place = sizeof(Code) == 2 ? i / 8 * 8 + kPairOrder[i % 8] : i;
        for (int row = 0; row < kGroupRows; row++) {
          weights[i * kGroupRows + row] =
              static_cast<std::int16_t>(value(group.codes, row, block * args.x.block + place));
        }
      }
      const std::int64_t at = block / per_scale * kGroupRows;
      float scales[kGroupRows];
      float minimums[kGroupRows];
      for (int row = 0; row < kGroupRows; row++) {
        scales[row] = value_at(group.scales, group.value_dtype, at + row);
        if (group.minimums != nullptr) minimums[row] = value_at(group.minimums, group.value_dtype, at + row);
      }
      for (std::int64_t m = 0; m < args.rows; m++) {
        float* out = args.out + m * args.out_stride + group.first_output;
        float sums[kGroupRows] = {};
        std::memcpy(sums, out, static_cast<std::size_t>(group.rows) * sizeof(float));
        add_block<Code>(args.x, m, block, weights, scales, group.minimums == nullptr ? nullptr : minimums, sums);
        std::memcpy(out, sums, static_cast<std::size_t>(group.rows) * sizeof(float));
      }
    }
    if (args.bias == nullptr) continue;
    for (std::int64_t m = 0; m < args.rows; m++) {
      for (std::int64_t n = group.first_output; n < group.first_output + group.rows; n++) {
        args.out[m * args.out_stride + n] += args.bias[n];
      }
    }
  }
}

// decode(group, row in the group, input, block of inputs): an element as f32.
template <class Decode>
void arranged_row(const ArrangedMatrix& matrix, float* out, std::int64_t output, std::int64_t input,
                  std::int64_t count, Decode decode) {
  const Group group = group_at(matrix, output / kGroupRows);
  for (std::int64_t k = input; k < input + count; k++) {
    out[k - input] = decode(group, output % kGroupRows, k, k / matrix.block_size * kGroupRows + output % kGroupRows);
  }
}

template <class Decode>
void arranged_embedding(const EmbeddingArgs& args, const ArrangedMatrix& matrix, Range rows, Decode decode) {
  embedding_of(args, rows, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
    arranged_row(matrix, out, row, input, count, decode);
  });
}

}  // namespace
}  // namespace shardloom::portable
