#include "linear_arguments.h"

namespace shardloom {
namespace {

void expect_values(Arguments& arguments, const char* name, const Region& region, std::int64_t blocks) {
  arguments.expect(elements(region) == blocks, "expected %s to have %lld elements but it has %lld", name,
                   static_cast<long long>(blocks), static_cast<long long>(elements(region)));
}

// The next argument: a tensor of f32 or f16.
Region read_values(Arguments& arguments, const char* name) {
  const Region region = arguments.tensor(name);
  if (arguments.ok() && region.dtype != DType::f32 && region.dtype != DType::f16) {
    arguments.fail_type("expected %s to be f32 or f16 but it is %s", name, dtype_name(region.dtype));
  }
  return region;
}

}  // namespace

BlockOperands read_code4(Arguments& arguments) {
  const Region codes = arguments.tensor("codes", DType::u8);
  const Region codebook = arguments.tensor("codebook", DType::f32);
  const Region scales = read_values(arguments, "scales");
  const Region minimums = arguments.optional_tensor("minimums", scales.dtype);
  arguments.expect(!arguments.ok() || elements(codebook) == 16,
                   "expected codebook to have 16 elements but it has %lld",
                   static_cast<long long>(elements(codebook)));
  return {codes, codebook, scales, minimums};
}

BlockOperands read_int8(Arguments& arguments) {
  const Region codes = arguments.tensor("codes", DType::i8);
  const Region scales = read_values(arguments, "scales");
  const Region minimums = arguments.optional_tensor("minimums", scales.dtype);
  return {codes, Region{}, scales, minimums};
}

std::int64_t read_block_size(Arguments& arguments, const BlockOperands& weight, std::int64_t inputs, bool may_be_row) {
  const std::int64_t size = arguments.integer("blockSize", 1, kMaxInt32);
  if (!arguments.ok()) return 1;
  const bool fits = (may_be_row && size == inputs) || (size % kBlockStep == 0 && inputs % size == 0);
  arguments.expect(fits, "expected blockSize to be a multiple of %lld that divides %lld inputs but received %lld",
                   static_cast<long long>(kBlockStep), static_cast<long long>(inputs), static_cast<long long>(size));
  if (!fits) return 1;
  const std::int64_t blocks = weight.codes.rows * (inputs / size);
  expect_values(arguments, "scales", weight.scales, blocks);
  if (weight.minimums.data != nullptr) expect_values(arguments, "minimums", weight.minimums, blocks);
  return size;
}

Code4Matrix read_code4_matrix(Arguments& arguments, const BlockOperands& weight) {
  const std::int64_t inputs = 2 * weight.codes.columns;
  return {
      .codes = static_cast<const std::uint8_t*>(weight.codes.data),
      .codebook = floats(weight.codebook),
      .scales = weight.scales.data,
      .minimums = weight.minimums.data,
      .value_dtype = weight.scales.dtype,
      .inputs = inputs,
      .block_size = read_block_size(arguments, weight, inputs, false),
  };
}

Int8Matrix read_int8_matrix(Arguments& arguments, const BlockOperands& weight) {
  const std::int64_t inputs = weight.codes.columns;
  const std::int64_t block_size = read_block_size(arguments, weight, inputs, true);
  return {
      .codes = static_cast<const std::int8_t*>(weight.codes.data),
      .scales = weight.scales.data,
      .minimums = weight.minimums.data,
      .value_dtype = weight.scales.dtype,
      .inputs = inputs,
      .block_size = block_size,
      .multiplier = static_cast<float>(arguments.number("multiplier")),
  };
}

void expect_apart(Arguments& arguments, const Region& out, const BlockOperands& weight) {
  expect_apart(arguments, out, "codes", weight.codes);
  expect_apart(arguments, out, "codebook", weight.codebook);
  expect_apart(arguments, out, "scales", weight.scales);
  expect_apart(arguments, out, "minimums", weight.minimums);
}

LinearArgs linear_args(Arguments& arguments, const Region& out, const Region& x, const Region& bias, std::int64_t rows,
                       std::int64_t first_column, std::int64_t outputs, std::int64_t inputs) {
  expect_rows(arguments, "out", out, rows);
  expect_rows(arguments, "x", x, rows);
  expect_columns(arguments, "x", x, inputs);
  arguments.expect(first_column + outputs <= out.columns,
                   "expected out to have at least %lld columns but it has %lld",
                   static_cast<long long>(first_column + outputs), static_cast<long long>(out.columns));
  arguments.expect(bias.data == nullptr || elements(bias) == out.columns,
                   "expected bias to have %lld elements but it has %lld", static_cast<long long>(out.columns),
                   static_cast<long long>(elements(bias)));
  expect_apart(arguments, out, "x", x);
  expect_apart(arguments, out, "bias", bias);
  if (!arguments.ok()) return LinearArgs{};
  return {
      .out = static_cast<float*>(out.data) + first_column,
      .out_stride = out.columns,
      .x = floats(x),
      .x_stride = x.columns,
      .weight = nullptr,
      .weight_dtype = DType::f32,
      .bias = bias.data == nullptr ? nullptr : floats(bias) + first_column,
      .rows = rows,
      .inputs = inputs,
      .workspace = nullptr,
  };
}

EmbeddingArgs embedding_args(Arguments& arguments, const Region& out, const Region& ids, std::int64_t rows,
                             std::int64_t first_id, std::int64_t id_count, std::int64_t width) {
  expect_rows(arguments, "out", out, rows);
  expect_elements(arguments, "ids", ids, rows);
  expect_columns(arguments, "out", out, width);
  expect_apart(arguments, out, "ids", ids);
  return {
      .out = static_cast<float*>(out.data),
      .out_stride = out.columns,
      .ids = integers(ids),
      .table = nullptr,
      .table_dtype = DType::f32,
      .width = width,
      .first_id = first_id,
      .id_count = id_count,
  };
}

}  // namespace shardloom
