// Exports of the addon that read weights: linear layers and embedding lookup, a function for each execution format.
// Operands come first, then rows, then the numbers that belong to the format.
#include "linear_binding.h"

#include <iterator>

#include "arguments.h"
#include "kernels/kernels.h"
#include "operand_checks.h"
#include "work_cost.h"

namespace shardloom {
namespace {

// A weight of blocks of codes, as its operands were bound.
struct BlockOperands {
  Region codes;
  Region codebook;  // code4 only
  Region scales;
  Region minimums;  // empty for none
};

BlockOperands read_code4(Arguments& arguments) {
  const Region codes = arguments.tensor("codes", DType::u8);
  const Region codebook = arguments.tensor("codebook", DType::f32);
  const Region scales = arguments.tensor("scales", DType::f32);
  const Region minimums = arguments.optional_tensor("minimums", DType::f32);
  arguments.expect(!arguments.ok() || elements(codebook) == 16,
                   "expected codebook to have 16 elements but it has %lld",
                   static_cast<long long>(elements(codebook)));
  return {codes, codebook, scales, minimums};
}

BlockOperands read_int8(Arguments& arguments) {
  const Region codes = arguments.tensor("codes", DType::i8);
  const Region scales = arguments.tensor("scales", DType::f32);
  const Region minimums = arguments.optional_tensor("minimums", DType::f32);
  return {codes, Region{}, scales, minimums};
}

void expect_values(Arguments& arguments, const char* name, const Region& region, std::int64_t blocks) {
  arguments.expect(elements(region) == blocks, "expected %s to have %lld elements but it has %lld", name,
                   static_cast<long long>(blocks), static_cast<long long>(elements(region)));
}

// The next argument: blockSize, which must suit the inputs, and each block must have its scale and minimum. Returns a
// size that is safe to divide by.
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
      .scales = floats(weight.scales),
      .minimums = floats(weight.minimums),
      .inputs = inputs,
      .block_size = read_block_size(arguments, weight, inputs, false),
  };
}

Int8Matrix read_int8_matrix(Arguments& arguments, const BlockOperands& weight) {
  const std::int64_t inputs = weight.codes.columns;
  const std::int64_t block_size = read_block_size(arguments, weight, inputs, true);
  return {
      .codes = static_cast<const std::int8_t*>(weight.codes.data),
      .scales = floats(weight.scales),
      .minimums = floats(weight.minimums),
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

// Checks what a linear layer of `outputs` rows of `inputs` elements is given beside its weight, whose fields of the
// result are left empty, as is the workspace.
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

// Runs kernel(args, outputs), each thread with its own workspace. Does nothing without rows.
template <class Kernel>
void run_linear(Arguments& arguments, std::int64_t outputs, double weight_bytes, const LinearArgs& args,
                const Kernel& kernel) {
  if (args.rows == 0) return;
  arguments.instance().parallel(linear_work(outputs, weight_bytes, args.inputs, args.rows),
                                [&](Range range, void* workspace) {
                                  LinearArgs own = args;
                                  own.workspace = workspace;
                                  kernel(own, range);
                                });
}

// Bytes of one row of a weight of blocks.
double row_bytes(const BlockOperands& weight) {
  const std::size_t bytes = weight.codes.bytes + weight.scales.bytes + weight.minimums.bytes;
  return static_cast<double>(bytes) / static_cast<double>(weight.codes.rows > 0 ? weight.codes.rows : 1);
}

napi_value linear(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "linear", 6);
  const Region out = arguments.tensor("out", DType::f32);
  const Region x = arguments.tensor("x", DType::f32);
  const Region weight = read_floats(arguments, "weight");
  const Region bias = arguments.optional_tensor("bias", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  expect_apart(arguments, out, "weight", weight);
  LinearArgs args = linear_args(arguments, out, x, bias, rows, first_column, weight.rows, weight.columns);
  args.weight = weight.data;
  args.weight_dtype = weight.dtype;
  if (!arguments.ok()) return nullptr;
  const auto weight_bytes = static_cast<double>(weight.columns) * static_cast<double>(dtype_bytes(weight.dtype));
  run_linear(arguments, weight.rows, weight_bytes, args, arguments.instance().kernels->linear);
  return nullptr;
}

napi_value linear_code4(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "linearCode4", 10);
  const Region out = arguments.tensor("out", DType::f32);
  const Region x = arguments.tensor("x", DType::f32);
  const BlockOperands weight = read_code4(arguments);
  const Region bias = arguments.optional_tensor("bias", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  const Code4Matrix matrix = read_code4_matrix(arguments, weight);
  const std::int64_t outputs = weight.codes.rows;
  expect_apart(arguments, out, weight);
  const LinearArgs args = linear_args(arguments, out, x, bias, rows, first_column, outputs, matrix.inputs);
  if (!arguments.ok()) return nullptr;
  const auto kernel = arguments.instance().kernels->linear_code4;
  run_linear(arguments, outputs, row_bytes(weight), args,
             [&](const LinearArgs& own, Range range) { kernel(own, matrix, range); });
  return nullptr;
}

napi_value linear_int8(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "linearInt8", 10);
  const Region out = arguments.tensor("out", DType::f32);
  const Region x = arguments.tensor("x", DType::f32);
  const BlockOperands weight = read_int8(arguments);
  const Region bias = arguments.optional_tensor("bias", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  const Int8Matrix matrix = read_int8_matrix(arguments, weight);
  const std::int64_t outputs = weight.codes.rows;
  expect_apart(arguments, out, weight);
  const LinearArgs args = linear_args(arguments, out, x, bias, rows, first_column, outputs, matrix.inputs);
  if (!arguments.ok()) return nullptr;
  const auto kernel = arguments.instance().kernels->linear_int8;
  run_linear(arguments, outputs, row_bytes(weight), args,
             [&](const LinearArgs& own, Range range) { kernel(own, matrix, range); });
  return nullptr;
}

// Checks what a lookup in a table of `id_count` rows of `width` elements is given beside the table.
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

napi_value embedding(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "embedding", 5);
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const Region table = read_floats(arguments, "table");
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  expect_apart(arguments, out, "table", table);
  EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, table.rows, table.columns);
  args.table = table.data;
  args.table_dtype = table.dtype;
  if (!arguments.ok()) return nullptr;
  const auto kernel = arguments.instance().kernels->embedding;
  arguments.instance().parallel(row_work(rows, table.columns), [&](Range range, void*) { kernel(args, range); });
  return nullptr;
}

napi_value embedding_code4(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "embeddingCode4", 9);
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const BlockOperands table = read_code4(arguments);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  const Code4Matrix matrix = read_code4_matrix(arguments, table);
  expect_apart(arguments, out, table);
  const EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, table.codes.rows, matrix.inputs);
  if (!arguments.ok()) return nullptr;
  const auto kernel = arguments.instance().kernels->embedding_code4;
  arguments.instance().parallel(row_work(rows, matrix.inputs),
                                [&](Range range, void*) { kernel(args, matrix, range); });
  return nullptr;
}

napi_value embedding_int8(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "embeddingInt8", 9);
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const BlockOperands table = read_int8(arguments);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  const Int8Matrix matrix = read_int8_matrix(arguments, table);
  expect_apart(arguments, out, table);
  const EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, table.codes.rows, matrix.inputs);
  if (!arguments.ok()) return nullptr;
  const auto kernel = arguments.instance().kernels->embedding_int8;
  arguments.instance().parallel(row_work(rows, matrix.inputs),
                                [&](Range range, void*) { kernel(args, matrix, range); });
  return nullptr;
}

}  // namespace

napi_status register_linear(napi_env env, napi_value exports, AddonInstance* instance) {
  const auto method = [instance](const char* name, napi_callback callback) {
    return napi_property_descriptor{name, nullptr, callback, nullptr, nullptr, nullptr, napi_enumerable, instance};
  };
  const napi_property_descriptor methods[] = {
      method("linear", linear),       method("linearCode4", linear_code4),       method("linearInt8", linear_int8),
      method("embedding", embedding), method("embeddingCode4", embedding_code4), method("embeddingInt8", embedding_int8),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
