// Exports of the addon that read weights: linear layers and embedding lookup, a function for each execution format.
// Operands come first, then rows, then the numbers that belong to the format.
#include "linear_binding.h"

#include <iterator>

#include "linear_arguments.h"
#include "operation.h"
#include "work_cost.h"

namespace shardloom {
namespace {

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

void linear(Arguments& arguments) {
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
  if (!arguments.ok()) return;
  const auto weight_bytes = static_cast<double>(weight.columns) * static_cast<double>(dtype_bytes(weight.dtype));
  run_linear(arguments, weight.rows, weight_bytes, args, arguments.instance().kernels->linear);
}

constexpr Operation kLinear = {"linear", 6, linear};

// Rounds x to bf16, then multiplies.
void linear_bf16(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region x = arguments.tensor("x", DType::f32);
  const Region weight = arguments.tensor("weight", DType::bf16);
  const Region bias = arguments.optional_tensor("bias", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  expect_apart(arguments, out, "weight", weight);
  arguments.expect(weight.columns % 2 == 0, "expected a weight of an even number of inputs but it has %lld",
                   static_cast<long long>(weight.columns));
  const LinearArgs args = linear_args(arguments, out, x, bias, rows, first_column, weight.rows, weight.columns);
  if (!arguments.ok() || rows == 0) return;
  AddonInstance& instance = arguments.instance();
  bf16* rounded = instance.rounded.reserve(rows * args.inputs);
  arguments.expect(rounded != nullptr, "not enough memory for %lld rows of activations", static_cast<long long>(rows));
  if (rounded == nullptr) return;
  const KernelTable& kernels = *instance.kernels;
  instance.parallel(row_work(rows, args.inputs), [&](Range range, void*) {
    for (std::int64_t m = range.begin; m < range.end; m++) {
      kernels.narrow_bf16(rounded + m * args.inputs, args.x + m * args.x_stride, {0, args.inputs});
    }
  });
  const auto weight_bytes = 2.0 * static_cast<double>(args.inputs);
  instance.parallel(linear_work(weight.rows, weight_bytes, args.inputs, rows), [&](Range range, void* workspace) {
    kernels.linear_bf16({args.out, args.out_stride, rounded, args.inputs, static_cast<const bf16*>(weight.data),
                         args.bias, rows, args.inputs, workspace},
                        range);
  });
}

constexpr Operation kLinearBf16 = {"linearBf16", 6, linear_bf16};

void linear_code4(Arguments& arguments) {
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
  if (!arguments.ok()) return;
  const auto kernel = arguments.instance().kernels->linear_code4;
  run_linear(arguments, outputs, row_bytes(weight), args,
             [&](const LinearArgs& own, Range range) { kernel(own, matrix, range); });
}

constexpr Operation kLinearCode4 = {"linearCode4", 10, linear_code4};

void linear_int8(Arguments& arguments) {
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
  if (!arguments.ok()) return;
  const auto kernel = arguments.instance().kernels->linear_int8;
  run_linear(arguments, outputs, row_bytes(weight), args,
             [&](const LinearArgs& own, Range range) { kernel(own, matrix, range); });
}

constexpr Operation kLinearInt8 = {"linearInt8", 10, linear_int8};

void embedding(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const Region table = read_floats(arguments, "table");
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  expect_apart(arguments, out, "table", table);
  EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, table.rows, table.columns);
  args.table = table.data;
  args.table_dtype = table.dtype;
  if (!arguments.ok()) return;
  const auto kernel = arguments.instance().kernels->embedding;
  arguments.instance().parallel(row_work(rows, table.columns), [&](Range range, void*) { kernel(args, range); });
}

constexpr Operation kEmbedding = {"embedding", 5, embedding};

void embedding_code4(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const BlockOperands table = read_code4(arguments);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  const Code4Matrix matrix = read_code4_matrix(arguments, table);
  expect_apart(arguments, out, table);
  const EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, table.codes.rows, matrix.inputs);
  if (!arguments.ok()) return;
  const auto kernel = arguments.instance().kernels->embedding_code4;
  arguments.instance().parallel(row_work(rows, matrix.inputs),
                                [&](Range range, void*) { kernel(args, matrix, range); });
}

constexpr Operation kEmbeddingCode4 = {"embeddingCode4", 9, embedding_code4};

void embedding_int8(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const BlockOperands table = read_int8(arguments);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  const Int8Matrix matrix = read_int8_matrix(arguments, table);
  expect_apart(arguments, out, table);
  const EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, table.codes.rows, matrix.inputs);
  if (!arguments.ok()) return;
  const auto kernel = arguments.instance().kernels->embedding_int8;
  arguments.instance().parallel(row_work(rows, matrix.inputs),
                                [&](Range range, void*) { kernel(args, matrix, range); });
}

constexpr Operation kEmbeddingInt8 = {"embeddingInt8", 9, embedding_int8};

}  // namespace

napi_status register_linear(napi_env env, napi_value exports, AddonInstance* instance) {
  const napi_property_descriptor methods[] = {
      exported<kLinear>(instance), exported<kLinearCode4>(instance), exported<kLinearInt8>(instance),
      exported<kLinearBf16>(instance), exported<kEmbedding>(instance), exported<kEmbeddingCode4>(instance),
      exported<kEmbeddingInt8>(instance),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
