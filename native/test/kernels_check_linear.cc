// Linear layers and embedding lookup, for weights of every format.
#include <vector>

#include "kernels_check_operands.h"

namespace shardloom::check {
namespace {

// A kernel bound to its weight.
using Apply = std::function<void(const KernelTable&, const LinearArgs&, Range)>;

void check_case(Check& check, Random& random, const Operands& operands, const Array<float>& decoded,
                const Apply& apply) {
  const Sizes& sizes = operands.sizes;
  const Output received = operands.output(), expected = operands.output();
  apply(check.variant, operands.args(check, received), {0, sizes.outputs});
  apply(check.portable, operands.args(check, expected), {0, sizes.outputs});
  check.expect_close(received, expected, rounding_bound(operands, decoded), "the result");
  check.digest(received);

  const Output split = operands.output();
  const std::int64_t at = random.between(0, sizes.outputs);
  apply(check.variant, operands.args(check, split), {0, at});
  apply(check.variant, operands.args(check, split), {at, sizes.outputs});
  check.expect_same(split, received, "the result of two ranges of outputs");

  const Output alone = operands.output();
  for (std::int64_t m = 0; m < sizes.rows;) {
    const std::int64_t rows = random.between(1, sizes.rows - m);
    LinearArgs args = operands.args(check, alone);
    args.out += m * args.out_stride;
    args.x += m * args.x_stride;
    args.rows = rows;
    apply(check.variant, args, {0, sizes.outputs});
    m += rows;
  }
  check.expect_same(alone, received, "the result of fewer rows at a time");
}

void check_dense(Check& check) {
  check.each_case([&](Random& random) {
    const DType dtype = any_float_dtype(random);
    const Numbers numbers = any_numbers(random);
    const Sizes sizes = any_sizes(random, 1);
    check.describe(dtype_name(dtype), ", ", sizes, ", ", name_of(numbers), " numbers");
    const Operands operands(random, sizes, numbers);
    with_float_type(dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      const Array<T> weight(sizes.outputs * sizes.inputs);
      fill(random, weight, numbers == Numbers::tiny ? Numbers::ordinary : numbers);
      const Array<float> decoded(weight.size());
      for (std::int64_t i = 0; i < weight.size(); i++) decoded[i] = to_float(weight[i]);
      check_case(check, random, operands, decoded, [&](const KernelTable& kernels, LinearArgs args, Range outputs) {
        args.weight = weight.data();
        args.weight_dtype = dtype;
        kernels.linear(args, outputs);
      });
    });
  });
}

// Bit for bit what the portable kernel gives.
void check_bf16(Check& check) {
  check.each_case([&](Random& random) {
    const Numbers numbers = any_numbers(random);
    const Sizes sizes = any_sizes(random, 2);
    check.describe(sizes, ", ", name_of(numbers), " numbers");
    const Operands operands(random, sizes, numbers);
    const Array<bf16> weight(sizes.outputs * sizes.inputs), x(sizes.rows * sizes.inputs);
    fill(random, weight, numbers);
    for (std::int64_t m = 0; m < sizes.rows; m++) {
      check.portable.narrow_bf16(x.data() + m * sizes.inputs, operands.x.data() + m * sizes.x_stride, {0, sizes.inputs});
    }
    const auto apply = [&](const KernelTable& kernels, const Output& out, Range rows, Range outputs) {
      kernels.linear_bf16({out.row(rows.begin), sizes.out_stride, x.data() + rows.begin * sizes.inputs, sizes.inputs,
                           weight.data(), operands.with_bias ? operands.bias.data() : nullptr, rows.end - rows.begin,
                           sizes.inputs, check.workspace.fresh()},
                          outputs);
    };
    const Output received = operands.output(), expected = operands.output(), parts = operands.output();
    apply(check.variant, received, {0, sizes.rows}, {0, sizes.outputs});
    apply(check.portable, expected, {0, sizes.rows}, {0, sizes.outputs});
    check.expect_same(received, expected, "the result");
    check.digest(received);
    const std::int64_t row = random.between(1, sizes.rows), output = random.between(0, sizes.outputs);
    for (const Range rows : {Range{0, row}, Range{row, sizes.rows}}) {
      if (rows.begin == rows.end) continue;
      apply(check.variant, parts, rows, {0, output});
      apply(check.variant, parts, rows, {output, sizes.outputs});
    }
    check.expect_same(parts, received, "the result of parts");
  });
}

// The values in f32 give the same bits in the dense kernel.
void check_dense_agrees(Check& check, const Operands& operands, const Array<float>& decoded, const Apply& apply) {
  const Output blocks = operands.output(), dense = operands.output();
  const Range all = {0, operands.sizes.outputs};
  apply(check.variant, operands.args(check, blocks), all);
  LinearArgs args = operands.args(check, dense);
  args.weight = decoded.data();
  args.weight_dtype = DType::f32;
  check.variant.linear(args, all);
  check.expect_same(blocks, dense, "what the dequantized weight gives");
}

void check_code4(Check& check) {
  check.each_case([&](Random& random) {
    const Code4Case weight(random);
    check.describe(weight.sizes);
    const Operands operands(random, weight.sizes.sizes, numbers_of_x(weight.sizes.numbers));
    const Apply apply = [&](const KernelTable& kernels, const LinearArgs& args, Range outputs) {
      kernels.linear_code4(args, weight.matrix(), outputs);
    };
    check_case(check, random, operands, weight.decoded, apply);
    check_dense_agrees(check, operands, weight.decoded, apply);
  });
}

void check_int8(Check& check) {
  check.each_case([&](Random& random) {
    const Int8Case weight(random, false, false);
    check.describe(weight.sizes);
    const Operands operands(random, weight.sizes.sizes, numbers_of_x(weight.sizes.numbers));
    const Apply apply = [&](const KernelTable& kernels, const LinearArgs& args, Range outputs) {
      kernels.linear_int8(args, weight.matrix(), outputs);
    };
    check_case(check, random, operands, weight.decoded, apply);
    check_dense_agrees(check, operands, weight.decoded, apply);
  });
}

void check_embedding(Check& check) {
  check.each_case([&](Random& random) {
    const DType dtype = any_float_dtype(random);
    const Numbers numbers = any_numbers(random);
    const Sizes sizes = any_sizes(random, 1);
    check.describe(dtype_name(dtype), ", ", sizes, ", ", name_of(numbers), " numbers");
    with_float_type(dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      const Array<T> table(sizes.outputs * sizes.inputs);
      fill(random, table, numbers);
      const Array<float> decoded(table.size());
      for (std::int64_t i = 0; i < table.size(); i++) decoded[i] = to_float(table[i]);
      check_lookup(check, random, sizes, decoded, [&](EmbeddingArgs args, Range rows) {
        args.table = table.data();
        args.table_dtype = dtype;
        check.variant.embedding(args, rows);
      });
    });
  });
}

void check_embedding_code4(Check& check) {
  check.each_case([&](Random& random) {
    const Code4Case table(random);
    check.describe(table.sizes);
    check_lookup(check, random, table.sizes.sizes, table.decoded, [&](const EmbeddingArgs& args, Range rows) {
      check.variant.embedding_code4(args, table.matrix(), rows);
    });
  });
}

void check_embedding_int8(Check& check) {
  check.each_case([&](Random& random) {
    const Int8Case table(random, false, false);
    check.describe(table.sizes);
    check_lookup(check, random, table.sizes.sizes, table.decoded, [&](const EmbeddingArgs& args, Range rows) {
      check.variant.embedding_int8(args, table.matrix(), rows);
    });
  });
}

}  // namespace

void add_linear_checks(std::vector<KernelCheck>& checks) {
  checks.push_back({"linear", check_dense, same<&KernelTable::linear>, 1});
  checks.push_back({"linear_bf16", check_bf16, same<&KernelTable::linear_bf16>, 1});
  checks.push_back({"linear_code4", check_code4, same<&KernelTable::linear_code4>, 1});
  checks.push_back({"linear_int8", check_int8, same<&KernelTable::linear_int8>, 1});
  checks.push_back({"embedding", check_embedding, same<&KernelTable::embedding>, 1});
  checks.push_back({"embedding_code4", check_embedding_code4, same<&KernelTable::embedding_code4>, 2});
  checks.push_back({"embedding_int8", check_embedding_int8, same<&KernelTable::embedding_int8>, 2});
}

}  // namespace shardloom::check
