// Operands of linear layers and weights of every format, as the checks of several kernels need them.
#pragma once

#include <cmath>
#include <ostream>

#include "../kernels/numbers.h"
#include "kernels_check.h"

namespace shardloom::check {
namespace {

constexpr double kRounding = 0x1p-24;
// Products of a case, which bounds its time.
constexpr std::int64_t kMostProducts = 1 << 20;

struct Sizes {
  std::int64_t rows;
  std::int64_t inputs;
  std::int64_t outputs;
  std::int64_t x_stride;
  std::int64_t out_stride;
};

inline std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  return out << sizes.rows << " rows, " << sizes.inputs << " inputs, " << sizes.outputs << " outputs, strides "
             << sizes.x_stride << " and " << sizes.out_stride;
}

// Tiles end at 3, 4, 6, 64 and 120; rows from 32 and 48 on take another path; chunks have 1024 inputs.
inline Sizes any_sizes(Random& random, std::int64_t input_step) {
  constexpr std::int64_t kAwkwardInputs[] = {16, 1008, 1024, 1040, 2048, 2064, 4096, 4112};
  Sizes sizes;
  sizes.rows = random.chance(12) ? random.between(30, 70) : random.between(1, 37);
  sizes.outputs = random.chance(12) ? random.between(110, 250) : random.between(1, 67);
  sizes.inputs = random.chance(4) ? kAwkwardInputs[random.below(8)] : random.sized(1, 4112);
  sizes.inputs = (sizes.inputs + input_step - 1) / input_step * input_step;
  while (sizes.rows * sizes.inputs * sizes.outputs > kMostProducts) {
    std::int64_t& larger = sizes.outputs > sizes.rows ? sizes.outputs : sizes.rows;
    larger = larger / 2;
  }
  sizes.x_stride = sizes.inputs + random.below(9);
  sizes.out_stride = sizes.outputs + random.below(9);
  return sizes;
}

// Everything of a case but the weight.
struct Operands {
  Sizes sizes;
  Array<float> x;
  Array<float> bias;
  bool with_bias;

  Operands(Random& random, const Sizes& sizes, Numbers numbers)
      : sizes(sizes), x((sizes.rows - 1) * sizes.x_stride + sizes.inputs), bias(sizes.outputs),
        with_bias(random.chance(2)) {
    fill(random, x, numbers);
    fill(random, bias, numbers);
    // Between rows, what must not be read.
    for (std::int64_t m = 0; m + 1 < sizes.rows; m++) {
      for (std::int64_t i = sizes.inputs; i < sizes.x_stride; i++) x[m * sizes.x_stride + i] = __builtin_nanf("");
    }
  }

  LinearArgs args(Check& check, const Output& out) const {
    LinearArgs args = {};
    args.out = out.data();
    args.out_stride = sizes.out_stride;
    args.x = x.data();
    args.x_stride = sizes.x_stride;
    args.bias = with_bias ? bias.data() : nullptr;
    args.rows = sizes.rows;
    args.inputs = sizes.inputs;
    args.workspace = check.workspace.fresh();
    return args;
  }

  Output output() const { return Output(sizes.rows, sizes.outputs, sizes.out_stride); }
};

// Twice what summing in f32 may be off: each of two kernels rounds every partial sum. `decoded` is the weight in f32.
inline Bound rounding_bound(const Operands& operands, const Array<float>& decoded) {
  return [&](std::int64_t m, std::int64_t n) {
    const Sizes& sizes = operands.sizes;
    double magnitude = operands.with_bias ? std::fabs(static_cast<double>(operands.bias[n])) : 0.0;
    for (std::int64_t k = 0; k < sizes.inputs; k++) {
      magnitude += std::fabs(static_cast<double>(operands.x[m * sizes.x_stride + k]) *
                             static_cast<double>(decoded[n * sizes.inputs + k]));
    }
    const auto inputs = static_cast<double>(sizes.inputs);
    return 2 * (inputs / 8 + 16) * kRounding * magnitude + inputs * 0x1p-149;
  };
}

// A weight of blocks: its scales and minimums, and its values in f32 as kernels.h defines them.
struct Blocks {
  std::int64_t block_size;
  bool with_minimums;
  DType dtype;  // in which kernels get scales and minimums
  Array<float> scales;
  Array<float> minimums;
  // The same in f16, where that is the dtype.
  Array<f16> half_scales;
  Array<f16> half_minimums;

  Blocks(Random& random, std::int64_t block_size, const Sizes& sizes, Numbers numbers)
      : block_size(block_size), with_minimums(random.chance(2)), dtype(random.chance(2) ? DType::f16 : DType::f32),
        scales(sizes.outputs * (sizes.inputs / block_size)), minimums(scales.size()),
        half_scales(dtype == DType::f16 ? scales.size() : 0), half_minimums(half_scales.size()) {
    fill(random, scales, numbers);
    fill(random, minimums, numbers);
    round_to(half_scales, scales);
    round_to(half_minimums, minimums);
  }

  static void round_to(const Array<f16>& halves, const Array<float>& values) {
    for (std::int64_t i = 0; i < halves.size(); i++) {
      from_float(values[i], &halves[i]);
      values[i] = to_float(halves[i]);
    }
  }

  const void* scale_data() const { return data_of(scales, half_scales); }
  const void* minimum_data() const { return with_minimums ? data_of(minimums, half_minimums) : nullptr; }
  const void* data_of(const Array<float>& values, const Array<f16>& halves) const {
    return dtype == DType::f16 ? static_cast<const void*>(halves.data()) : values.data();
  }

  float value(float code, std::int64_t row, std::int64_t input, std::int64_t inputs, float multiplier) const {
    const std::int64_t block = row * (inputs / block_size) + input / block_size;
    const float scaled = code * scales[block] * multiplier;
    return with_minimums ? scaled + minimums[block] : scaled;
  }
};

struct BlockCase {
  Numbers numbers;
  std::int64_t block_size;
  Sizes sizes;
};

inline std::ostream& operator<<(std::ostream& out, const BlockCase& sizes) {
  return out << sizes.sizes << ", blocks of " << sizes.block_size << ", " << name_of(sizes.numbers) << " numbers";
}

inline BlockCase any_block_case(Random& random) {
  constexpr std::int64_t kBlocks[] = {16, 32, 48, 64, 128, 256};
  BlockCase result;
  result.numbers = any_numbers(random);
  result.block_size = kBlocks[random.below(6)];
  result.sizes = any_sizes(random, result.block_size);
  return result;
}

struct Code4Case {
  BlockCase sizes;
  Blocks blocks;
  Array<float> codebook;
  Array<std::uint8_t> codes;
  Array<float> decoded;

  explicit Code4Case(Random& random)
      : sizes(any_block_case(random)), blocks(random, sizes.block_size, sizes.sizes, sizes.numbers),
        codebook(16), codes(sizes.sizes.outputs * sizes.sizes.inputs / 2), decoded(codes.size() * 2) {
    fill(random, codebook, Numbers::ordinary);
    const std::int64_t inputs = sizes.sizes.inputs;
    for (std::int64_t i = 0; i < codes.size(); i++) codes[i] = static_cast<std::uint8_t>(random.next());
    for (std::int64_t i = 0; i < decoded.size(); i++) {
      const int code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
      decoded[i] = blocks.value(codebook[code], i / inputs, i % inputs, inputs, 1.0f);
    }
  }

  Code4Matrix matrix() const {
    return {codes.data(), codebook.data(),     blocks.scale_data(), blocks.minimum_data(),
            blocks.dtype, sizes.sizes.inputs, sizes.block_size};
  }
};

struct Int8Case {
  BlockCase sizes;
  Blocks blocks;
  float multiplier;
  Array<std::int8_t> codes;
  Array<float> decoded;

  // A row may be one block of any length, unless `in_steps`; `extreme` codes are all at the ends of their range.
  Int8Case(Random& random, bool in_steps, bool extreme)
      : sizes(any_sizes_of_int8(random, in_steps)), blocks(random, sizes.block_size, sizes.sizes, sizes.numbers),
        multiplier(random.chance(2) ? 1.0f : 0.0078125f * 1.1f), codes(sizes.sizes.outputs * sizes.sizes.inputs),
        decoded(codes.size()) {
    const std::int64_t inputs = sizes.sizes.inputs;
    for (std::int64_t i = 0; i < codes.size(); i++) {
      const std::int64_t end = random.chance(3) ? 127 : -128;
      codes[i] = static_cast<std::int8_t>(extreme ? end : random.below(256) - 128);
      decoded[i] = blocks.value(static_cast<float>(codes[i]), i / inputs, i % inputs, inputs, multiplier);
    }
  }

  static BlockCase any_sizes_of_int8(Random& random, bool in_steps) {
    BlockCase result = any_block_case(random);
    if (random.chance(2)) return result;
    if (!in_steps) result.sizes.inputs -= random.below(16);
    result.block_size = result.sizes.inputs;
    return result;
  }

  Int8Matrix matrix() const {
    return {codes.data(), blocks.scale_data(), blocks.minimum_data(), blocks.dtype, sizes.sizes.inputs,
            sizes.block_size, multiplier};
  }
};

// x is tiny where the numbers are: scales are then as well, and products vanish otherwise.
inline Numbers numbers_of_x(Numbers numbers) { return numbers == Numbers::tiny ? Numbers::ordinary : numbers; }

using Lookup = std::function<void(const EmbeddingArgs&, Range)>;

// Looks ids up, some of them outside of the table, whose values in f32 are `decoded`.
inline void check_lookup(Check& check, Random& random, const Sizes& sizes, const Array<float>& decoded,
                  const Lookup& apply) {
  const std::int64_t rows = random.between(1, 9);
  const Array<std::int32_t> ids(rows);
  for (std::int64_t m = 0; m < rows; m++) ids[m] = static_cast<std::int32_t>(random.between(-2, sizes.outputs + 12));
  const Output out(rows, sizes.inputs, sizes.inputs + random.below(5)), expected(rows, sizes.inputs, sizes.inputs);
  EmbeddingArgs args = {};
  args.out = out.data();
  args.out_stride = out.stride();
  args.ids = ids.data();
  args.width = sizes.inputs;
  args.first_id = 5;
  args.id_count = sizes.outputs;
  apply(args, {0, rows});
  for (std::int64_t m = 0; m < rows; m++) {
    const std::int64_t row = ids[m] - args.first_id;
    for (std::int64_t i = 0; i < sizes.inputs; i++) {
      expected.row(m)[i] = row >= 0 && row < sizes.outputs ? decoded[row * sizes.inputs + i] : 0.0f;
    }
  }
  check.expect_same(out, expected, "the rows that were looked up");
  check.digest(out);
}

}  // namespace
}  // namespace shardloom::check
