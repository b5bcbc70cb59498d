// Arranged weights: linear layers at every level, look-up, and the rounding of activations. Whole numbers leave no room for
// differences: what is not f32 must have the bits of the portable kernels.
#include <vector>

#include "../kernels/arranged_layout.h"
#include "kernels_check_operands.h"

namespace shardloom::check {
namespace {

// The scales and minimums of a weight in the order that kernels want.
template <class Value>
struct ArrangedValues {
  Array<Value> scales;
  Array<Value> minimums;
  Array<Value> tail_scales;
  Array<Value> tail_minimums;

  ArrangedValues(const Array<Value>& from_scales, const Array<Value>& from_minimums, std::int64_t outputs,
                 std::int64_t blocks)
      : scales(outputs / kGroupRows * kGroupRows * blocks), minimums(scales.size()),
        tail_scales(outputs % kGroupRows == 0 ? 0 : kGroupRows * blocks), tail_minimums(tail_scales.size()) {
    arrange(from_scales, outputs, blocks, scales, tail_scales);
    arrange(from_minimums, outputs, blocks, minimums, tail_minimums);
  }

  static void arrange(const Array<Value>& from, std::int64_t outputs, std::int64_t blocks, const Array<Value>& whole,
                      const Array<Value>& tail) {
    for (std::int64_t first = 0; first < outputs; first += kGroupRows) {
      const std::int64_t rows = outputs - first < kGroupRows ? outputs - first : kGroupRows;
      Value* to = rows == kGroupRows ? whole.data() + first * blocks : tail.data();
      arrange_values(static_cast<const Value*>(from.data()) + first * blocks, rows, blocks, to);
    }
  }

  void describe(ArrangedMatrix& matrix, bool with_tail, bool with_minimums) const {
    matrix.scales = scales.data();
    matrix.minimums = with_minimums ? minimums.data() : nullptr;
    matrix.tail_scales = with_tail ? tail_scales.data() : nullptr;
    matrix.tail_minimums = with_tail && with_minimums ? tail_minimums.data() : nullptr;
  }
};

// The bytes of a weight in the order that kernels want.
struct Arranged {
  std::int64_t groups;
  std::int64_t rest;
  std::int64_t row_bytes;
  std::int64_t blocks;
  Array<std::uint8_t> codes;
  ArrangedValues<float> floats;
  ArrangedValues<f16> halves;
  Array<std::uint8_t> tail_codes;

  Arranged(const std::uint8_t* from, std::int64_t row_bytes, bool code4, const Blocks& values, const Sizes& sizes)
      : groups(sizes.outputs / kGroupRows), rest(sizes.outputs % kGroupRows), row_bytes(row_bytes),
        blocks(sizes.inputs / values.block_size), codes(groups * kGroupRows * row_bytes),
        floats(values.scales, values.minimums, sizes.outputs, blocks),
        halves(values.half_scales, values.half_minimums, values.dtype == DType::f16 ? sizes.outputs : 0, blocks),
        tail_codes(rest == 0 ? 0 : kGroupRows * row_bytes) {
    for (std::int64_t g = 0; g * kGroupRows < sizes.outputs; g++) {
      const std::int64_t first = g * kGroupRows, rows = g < groups ? kGroupRows : rest;
      arrange_codes(from + first * row_bytes, rows, row_bytes, code4,
                    g < groups ? codes.data() + first * row_bytes : tail_codes.data());
    }
  }

  void describe(ArrangedMatrix& matrix, const Blocks& values, const Sizes& sizes) const {
    matrix.codes = codes.data();
    matrix.tail_codes = rest == 0 ? nullptr : tail_codes.data();
    matrix.value_dtype = values.dtype;
    if (values.dtype == DType::f16) {
      halves.describe(matrix, rest > 0, values.with_minimums);
    } else {
      floats.describe(matrix, rest > 0, values.with_minimums);
    }
    matrix.outputs = sizes.outputs;
    matrix.inputs = sizes.inputs;
    matrix.block_size = values.block_size;
    matrix.group_bytes = kGroupRows * row_bytes;
  }
};

struct ArrangedCode4Case : Code4Case {
  Arranged arranged;
  ArrangedCode4 weight;

  // The whole numbers of the codebook need not be those of its floats: kernels take either.
  explicit ArrangedCode4Case(Random& random)
      : Code4Case(random), arranged(codes.data(), sizes.sizes.inputs / 2, true, blocks, sizes.sizes), weight{} {
    arranged.describe(weight, blocks, sizes.sizes);
    const bool extreme = random.chance(3);
    // Those of linear codes: sums of a block of them may be small, which kernels may make use of, or just not.
    const std::int64_t most = random.chance(2) ? 8 * (1 + random.below(2)) : kCodebook16Limit;
    const bool linear = random.chance(2);
    const std::int64_t linear_unit = random.between(1, most * 2 / 15);
    const std::int64_t linear_least = random.between(-most, most - 15 * linear_unit);
    // How far apart codes of 8 bits are, times how many of them there are, is what kernels choose a way by.
    const std::int64_t unit = random.between(1, 8);
    const std::int64_t count = random.between(1, (2 * kCodebook8Limit) / unit);
    const std::int64_t least = random.between(-kCodebook8Limit, kCodebook8Limit - unit * count);
    for (int i = 0; i < 16; i++) {
      weight.codebook[i] = codebook[i];
      const std::int64_t sign = random.chance(2) ? 1 : -1;
      weight.codebook16[i] = static_cast<std::int16_t>(sign * (extreme ? most : random.below(most + 1)));
      if (linear) weight.codebook16[i] = static_cast<std::int16_t>(linear_least + i * linear_unit);
      const std::int64_t step = extreme ? (random.chance(2) ? count : 0) : random.between(0, count);
      weight.codebook8[i] = static_cast<std::int8_t>(least + unit * step);
    }
    weight.step16 = 0x1p-12f;
    weight.step8 = 0x1p-7f;
    weight.steps16 = steps_of(weight.codebook16);
    weight.steps8 = steps_of(weight.codebook8);
  }
};

struct ArrangedInt8Case : Int8Case {
  Arranged arranged;
  ArrangedInt8 weight;

  explicit ArrangedInt8Case(Random& random)
      : Int8Case(random, true, random.chance(3)),
        arranged(reinterpret_cast<const std::uint8_t*>(codes.data()), sizes.sizes.inputs, false, blocks, sizes.sizes),
        weight{} {
    arranged.describe(weight, blocks, sizes.sizes);
    weight.multiplier = multiplier;
  }
};

// Activations that are rounded, by `kernels`.
template <class Code>
struct Rounded {
  Array<std::byte> codes;
  Array<float> scales;
  Array<float> sums;
  Array<std::int32_t> starts;
  QuantizedRows rows;

  Rounded(const KernelTable& kernels, const Operands& operands, std::int64_t block, std::int32_t limit, float factor,
          std::int32_t offset)
      : codes(operands.sizes.rows * stride_of(operands.sizes.inputs)),
        scales(operands.sizes.rows * (operands.sizes.inputs / block)), sums(scales.size()), starts(scales.size()) {
    rows = {codes.data(),  stride_of(operands.sizes.inputs),  scales.data(), sums.data(),
            starts.data(), operands.sizes.inputs / block, block};
    const QuantizeArgs args = {operands.x.data(), operands.sizes.x_stride, operands.sizes.inputs, limit, factor, offset, rows};
    (sizeof(Code) == 2 ? kernels.quantize_int16 : kernels.quantize_int8)(args, {0, operands.sizes.rows});
  }

  static std::int64_t stride_of(std::int64_t inputs) {
    return (inputs * static_cast<std::int64_t>(sizeof(Code)) + 63) / 64 * 64;
  }
};

template <class Code>
std::int32_t offset_of(const ArrangedCode4& weight) {
  return (sizeof(Code) == 2 ? weight.steps16 : weight.steps8).least;
}
template <class Code>
std::int32_t offset_of(const ArrangedInt8&) {
  return kInt8Offset;
}

// x whose blocks are at the limits of both signs, or as any numbers are.
void sharpen(Random& random, const Operands& operands) {
  if (!random.chance(4)) return;
  for (std::int64_t i = 0; i < operands.x.size(); i++) operands.x[i] = random.chance(2) ? 3.0f : -3.0f;
}

template <class Code, class Kernel, class Weight>
void check_level(Check& check, Random& random, const Operands& operands, const Weight& weight, std::int32_t limit,
                 Kernel kernel) {
  const Sizes& sizes = operands.sizes;
  const Rounded<Code> x(check.portable, operands, activation_block(weight.block_size), limit, 0.125f,
                        offset_of<Code>(weight));
  const std::int64_t groups = group_count(sizes.outputs);
  const auto apply = [&](const KernelTable& kernels, const Output& out, Range rows, Range of_groups) {
    QuantizedRows part = x.rows;
    part.codes = static_cast<std::byte*>(part.codes) + rows.begin * part.code_stride;
    part.scales += rows.begin * part.blocks;
    part.sums += rows.begin * part.blocks;
    part.starts += rows.begin * part.blocks;
    const float* bias = operands.with_bias ? operands.bias.data() : nullptr;
    (kernels.*kernel)({out.row(rows.begin), out.stride(), part, bias, rows.end - rows.begin}, weight, of_groups);
  };
  const Output received = operands.output(), expected = operands.output(), parts = operands.output();
  apply(check.variant, received, {0, sizes.rows}, {0, groups});
  apply(check.portable, expected, {0, sizes.rows}, {0, groups});
  check.expect_same(received, expected, "the result in whole numbers");
  const std::int64_t row = random.between(1, sizes.rows), group = random.between(0, groups);
  for (const Range rows : {Range{0, row}, Range{row, sizes.rows}}) {
    if (rows.begin == rows.end) continue;
    apply(check.variant, parts, rows, {0, group});
    apply(check.variant, parts, rows, {group, groups});
  }
  check.expect_same(parts, received, "the result of parts");
  check.digest(received);
}

template <class Code, class Case, class Kernel>
void check_levels(Check& check, std::int32_t limit, Kernel kernel) {
  check.each_case([&](Random& random) {
    const Case weight(random);
    check.describe(weight.sizes);
    const Operands operands(random, weight.sizes.sizes, weight.sizes.numbers);
    sharpen(random, operands);
    check_level<Code>(check, random, operands, weight.weight, limit, kernel);
  });
}

template <class Case, class Kernel>
void check_arranged_lookup(Check& check, Kernel kernel) {
  check.each_case([&](Random& random) {
    const Case table(random);
    check.describe(table.sizes);
    check_lookup(check, random, table.sizes.sizes, table.decoded, [&](const EmbeddingArgs& args, Range rows) {
      (check.variant.*kernel)(args, table.weight, rows);
    });
  });
}

template <class Code>
void check_rounding(Check& check) {
  check.each_case([&](Random& random) {
    const std::int64_t block = std::int64_t{16} << random.below(3);
    const Numbers numbers = any_numbers(random);
    const Sizes sizes = any_sizes(random, block);
    const std::int32_t limits[] = {kInt16LimitOfCode4, kInt16LimitOfInt8};
    const std::int32_t limit = sizeof(Code) == 1 ? kInt8Limit : limits[random.below(2)];
    check.describe(sizes, ", blocks of ", block, ", limit ", limit, ", ", name_of(numbers), " numbers");
    const Operands operands(random, sizes, numbers);
    const auto offset = static_cast<std::int32_t>(random.between(-128, 127));
    const Rounded<Code> received(check.variant, operands, block, limit, 0.375f, offset);
    const Rounded<Code> expected(check.portable, operands, block, limit, 0.375f, offset);
    const auto bytes = static_cast<std::size_t>(sizes.inputs) * sizeof(Code);
    for (std::int64_t m = 0; m < sizes.rows; m++) {
      const std::int64_t at = m * received.rows.code_stride;
      check.expect_same_bytes(received.codes.data() + at, expected.codes.data() + at, bytes, "codes differ");
      check.digest(received.codes.data() + at, bytes);
    }
    for (std::int64_t i = 0; i < received.scales.size(); i++) {
      check.expect(same_number(received.scales[i], expected.scales[i]), "a scale differs");
      check.expect(same_number(received.sums[i], expected.sums[i]), "a sum differs");
      check.expect(received.starts[i] == expected.starts[i], "a start differs");
    }
  });
}

}  // namespace

void add_arranged_checks(std::vector<KernelCheck>& checks) {
  using Table = KernelTable;
  const auto add = [&](const char* name, void (*work)(Check&), bool (*same_kernel)(const Table&, const Table&)) {
    checks.push_back({name, work, same_kernel, 1});
  };
  add("quantize_int16", check_rounding<std::int16_t>, same<&Table::quantize_int16>);
  add("quantize_int8", check_rounding<std::int8_t>, same<&Table::quantize_int8>);
  add("code4_int16", [](Check& c) {
    check_levels<std::int16_t, ArrangedCode4Case>(c, kInt16LimitOfCode4, &Table::arranged_code4_int16);
  }, same<&Table::arranged_code4_int16>);
  add("code4_int8", [](Check& c) {
    check_levels<std::int8_t, ArrangedCode4Case>(c, kInt8Limit, &Table::arranged_code4_int8);
  }, same<&Table::arranged_code4_int8>);
  add("int8_int16", [](Check& c) {
    check_levels<std::int16_t, ArrangedInt8Case>(c, kInt16LimitOfInt8, &Table::arranged_int8_int16);
  }, same<&Table::arranged_int8_int16>);
  add("int8_int8", [](Check& c) {
    check_levels<std::int8_t, ArrangedInt8Case>(c, kInt8Limit, &Table::arranged_int8_int8);
  }, same<&Table::arranged_int8_int8>);
  add("code4_lookup", [](Check& c) { check_arranged_lookup<ArrangedCode4Case>(c, &Table::embedding_arranged_code4); },
      same<&Table::embedding_arranged_code4>);
  add("int8_lookup", [](Check& c) { check_arranged_lookup<ArrangedInt8Case>(c, &Table::embedding_arranged_int8); },
      same<&Table::embedding_arranged_int8>);
}

}  // namespace shardloom::check
