// Linear layers with arranged weights in f32, for any vector type `V`. Groups are decoded to a panel, a chunk of inputs at
// a time, and linear_simd.h multiplies it: an output has the bits that the dequantized weight gives there.
//
// A `Format` is made from its matrix and has
//   kUnitInputs                                     inputs of a unit (arranged_layout.h)
//   decode(unit, scales, minimums, out, stride)     the elements of a unit in f32: those of row r begin at out + r * stride.
//                                                   scales and minimums (or null) are those of the sixteen rows
#pragma once

#include "arranged_layout.h"
#include "linear_simd.h"

namespace shardloom {
namespace {

template <class V, class Format>
struct ArrangedFloats {
  using Dense = Linear<V>;
  static constexpr std::int64_t kPanelGroups = Dense::kPanelRows / kGroupRows;

  // Inputs [input, input + count) of a group become rows of a panel.
  static void decode_group(const Format& format, const ArrangedMatrix& matrix, const Group& group, std::int64_t input,
                           std::int64_t count, float* panel) {
    for (std::int64_t k = 0; k < count;) {
      const std::int64_t block = (input + k) / matrix.block_size;
      const std::int64_t block_end = (block + 1) * matrix.block_size - input;
      const float* scales = group.scales + block * kGroupRows;
      const float* minimums = group.minimums == nullptr ? nullptr : group.minimums + block * kGroupRows;
      for (const std::int64_t end = block_end < count ? block_end : count; k < end; k += Format::kUnitInputs) {
        const std::uint8_t* unit = group.codes + (input + k) / Format::kUnitInputs * kUnitBytes;
        format.decode(unit, scales, minimums, panel + k, Dense::kPanelStride);
      }
    }
  }

  template <class Matrix>
  static void run(const LinearArgs& args, const Matrix& matrix, Range groups) {
    const Format format(matrix);
    float* panel = static_cast<float*>(args.workspace);
    for (std::int64_t first = groups.begin; first < groups.end; first += kPanelGroups) {
      const std::int64_t end = first + kPanelGroups < groups.end ? first + kPanelGroups : groups.end;
      const std::int64_t last_output = end * kGroupRows;
      const Range outputs = {first * kGroupRows, last_output < matrix.outputs ? last_output : matrix.outputs};
      Dense::for_each_chunk(args, [&](std::int64_t k) {
        for (std::int64_t g = first; g < end; g++) {
          float* rows = panel + (g - first) * kGroupRows * Dense::kPanelStride;
          decode_group(format, matrix, group_at(matrix, g), k, Dense::chunk_at(args, k), rows);
        }
        Dense::multiply_panel(args, panel, outputs, k);
      });
    }
  }
};

}  // namespace
}  // namespace shardloom
