// Exports of the addon that take weights over and multiply with them.
#include "prepared_binding.h"

#include <iterator>
#include <memory>
#include <new>

#include "kernels/arranged_layout.h"
#include "linear_arguments.h"
#include "operation.h"
#include "work_cost.h"

namespace shardloom {
namespace {

void expect_alone(Arguments& arguments, const char* name, const Region& region) {
  arguments.expect(!arguments.ok() || !arguments.instance().weights.holds(region),
                   "expected %s to belong to no prepared weight", name);
}

// Arranges and registers a weight whose other fields are set. Returns its number, or null after throwing.
napi_value finish(Arguments& arguments, std::unique_ptr<PreparedWeight> weight, const BlockOperands& operands,
                  std::int64_t inputs, std::int64_t block_size, bool in_groups) {
  AddonInstance& instance = arguments.instance();
  weight->regions[0] = operands.codes;
  weight->regions[1] = operands.scales;
  weight->regions[2] = operands.minimums;
  const bool arranged = arrange(instance, *weight, operands.codes, operands.scales, operands.minimums, inputs, block_size, in_groups);
  const std::int32_t handle = arranged ? instance.weights.add(std::move(weight)) : 0;
  arguments.expect(handle != 0, "not enough memory for another weight");
  napi_value number = nullptr;
  return handle != 0 && napi_create_int32(arguments.env(), handle, &number) == napi_ok ? number : nullptr;
}

napi_value no_weight(napi_env env) {
  napi_value number = nullptr;
  return napi_create_int32(env, 0, &number) == napi_ok ? number : nullptr;
}

void expect_free(Arguments& arguments, const BlockOperands& operands) {
  expect_alone(arguments, "codes", operands.codes);
  expect_alone(arguments, "scales", operands.scales);
  expect_alone(arguments, "minimums", operands.minimums);
  // What is moved about must not be moved twice.
  expect_apart(arguments, operands.codes, "scales", operands.scales);
  expect_apart(arguments, operands.codes, "minimums", operands.minimums);
  expect_apart(arguments, operands.scales, "minimums", operands.minimums);
}

Activations read_activations(Arguments& arguments) {
  return static_cast<Activations>(arguments.integer("activations", 1, 3));
}

napi_value prepare_code4(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "prepareCode4", 7);
  const BlockOperands operands = read_code4(arguments);
  const Code4Matrix matrix = read_code4_matrix(arguments, operands);
  const Activations activations = read_activations(arguments);
  const bool in_groups = arguments.integer("inGroups", 0, 1) == 1;
  expect_free(arguments, operands);
  if (!arguments.ok()) return nullptr;
  std::unique_ptr<PreparedWeight> weight(new (std::nothrow) PreparedWeight{});
  arguments.expect(weight != nullptr, "not enough memory for another weight");
  if (!arguments.ok()) return nullptr;
  if (matrix.inputs == 0 || !quantize_codebook(weight->code4, matrix.codebook)) return no_weight(env);
  weight->is_code4 = true;
  weight->activations = activations;
  return finish(arguments, std::move(weight), operands, matrix.inputs, matrix.block_size, in_groups);
}

napi_value prepare_int8(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "prepareInt8", 7);
  const BlockOperands operands = read_int8(arguments);
  const Int8Matrix matrix = read_int8_matrix(arguments, operands);
  const Activations activations = read_activations(arguments);
  const bool in_groups = arguments.integer("inGroups", 0, 1) == 1;
  expect_free(arguments, operands);
  if (!arguments.ok()) return nullptr;
  if (matrix.inputs == 0 || matrix.block_size % kBlockStep != 0) return no_weight(env);
  std::unique_ptr<PreparedWeight> weight(new (std::nothrow) PreparedWeight{});
  arguments.expect(weight != nullptr, "not enough memory for another weight");
  if (!arguments.ok()) return nullptr;
  weight->activations = activations;
  weight->int8.multiplier = matrix.multiplier;
  return finish(arguments, std::move(weight), operands, matrix.inputs, matrix.block_size, in_groups);
}

napi_value release_weight(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "releaseWeight", 1);
  const double handle = arguments.number("weight");
  if (!arguments.ok()) return nullptr;
  arguments.expect(arguments.instance().weights.release(handle), "expected a prepared weight but received %.17g", handle);
  return nullptr;
}

// The next argument: a prepared weight. Null after throwing.
const PreparedWeight* read_weight(Arguments& arguments) {
  const double handle = arguments.number("weight");
  if (!arguments.ok()) return nullptr;
  const PreparedWeight* weight = arguments.instance().weights.find(handle);
  arguments.expect(weight != nullptr, "expected a prepared weight but received %.17g", handle);
  return weight;
}

void expect_apart(Arguments& arguments, const Region& out, const PreparedWeight& weight) {
  expect_apart(arguments, out, "codes", weight.regions[0]);
  expect_apart(arguments, out, "scales", weight.regions[1]);
  expect_apart(arguments, out, "minimums", weight.regions[2]);
}

// Groups of rows, for `rows` rows of x.
Work group_work(const PreparedWeight& weight, std::int64_t rows) {
  const ArrangedMatrix& matrix = weight.matrix();
  const auto bytes = static_cast<double>(weight.regions[0].bytes + weight.regions[1].bytes + weight.regions[2].bytes);
  const std::int64_t groups = group_count(matrix.outputs);
  const double multiply_adds = static_cast<double>(kGroupRows * matrix.inputs * rows);
  const double group_bytes = groups == 0 ? 0 : bytes / static_cast<double>(groups);
  return {groups, 1, group_bytes * kNsPerByte + multiply_adds * kNsPerMultiplyAdd};
}

void multiply(const KernelTable& kernels, const PreparedWeight& weight, bool is_int8, const ArrangedLinearArgs& args,
              Range groups) {
  if (weight.is_code4) {
    (is_int8 ? kernels.arranged_code4_int8 : kernels.arranged_code4_int16)(args, weight.code4, groups);
  } else {
    (is_int8 ? kernels.arranged_int8_int8 : kernels.arranged_int8_int16)(args, weight.int8, groups);
  }
}

// Rounds x, then multiplies in whole numbers. False when memory is short.
bool run_linear(AddonInstance& instance, const PreparedWeight& weight, const LinearArgs& args) {
  const KernelTable& kernels = *instance.kernels;
  const std::int64_t block = activation_block(weight.matrix().block_size);
  const bool is_int8 = weight.activations == Activations::int8;
  const std::int32_t limit16 = weight.is_code4 ? kInt16LimitOfCode4 : kInt16LimitOfInt8;
  const float step = is_int8 ? weight.code4.step8 : weight.code4.step16;
  const CodeSteps& steps = is_int8 ? weight.code4.steps8 : weight.code4.steps16;
  const QuantizeArgs quantize = {
      .x = args.x,
      .x_stride = args.x_stride,
      .inputs = args.inputs,
      .limit = is_int8 ? kInt8Limit : limit16,
      .factor = weight.is_code4 ? step : weight.int8.multiplier,
      .offset = weight.is_code4 ? steps.least : kInt8Offset,
      .out = instance.quantized.reserve(args.rows, args.inputs, block, is_int8 ? 1 : 2),
  };
  if (quantize.out.codes == nullptr) return false;
  const auto round = is_int8 ? kernels.quantize_int8 : kernels.quantize_int16;
  instance.parallel(row_work(args.rows, args.inputs), [&](Range rows, void*) { round(quantize, rows); });
  const ArrangedLinearArgs linear = {args.out, args.out_stride, quantize.out, args.bias, args.rows};
  instance.parallel(group_work(weight, args.rows),
                    [&](Range groups, void*) { multiply(kernels, weight, is_int8, linear, groups); });
  return true;
}

void linear_prepared(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region x = arguments.tensor("x", DType::f32);
  const PreparedWeight* weight = read_weight(arguments);
  const Region bias = arguments.optional_tensor("bias", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  if (weight == nullptr) return;
  const ArrangedMatrix& matrix = weight->matrix();
  expect_apart(arguments, out, *weight);
  const LinearArgs args = linear_args(arguments, out, x, bias, rows, first_column, matrix.outputs, matrix.inputs);
  if (!arguments.ok() || rows == 0) return;
  AddonInstance& instance = arguments.instance();
  arguments.expect(run_linear(instance, *weight, args), "not enough memory for %lld rows of activations",
                   static_cast<long long>(rows));
}

constexpr Operation kLinearPrepared = {"linearPrepared", 6, linear_prepared};

void embedding_prepared(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const PreparedWeight* table = read_weight(arguments);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  if (table == nullptr) return;
  const ArrangedMatrix& matrix = table->matrix();
  expect_apart(arguments, out, *table);
  const EmbeddingArgs args = embedding_args(arguments, out, ids, rows, first_id, matrix.outputs, matrix.inputs);
  if (!arguments.ok()) return;
  const KernelTable& kernels = *arguments.instance().kernels;
  arguments.instance().parallel(row_work(rows, args.width), [&](Range range, void*) {
    if (table->is_code4) return kernels.embedding_arranged_code4(args, table->code4, range);
    kernels.embedding_arranged_int8(args, table->int8, range);
  });
}

constexpr Operation kEmbeddingPrepared = {"embeddingPrepared", 5, embedding_prepared};

}  // namespace

napi_status register_prepared(napi_env env, napi_value exports, AddonInstance* instance) {
  const auto method = [instance](const char* name, napi_callback callback) {
    return napi_property_descriptor{name, nullptr, callback, nullptr, nullptr, nullptr, napi_enumerable, instance};
  };
  const napi_property_descriptor methods[] = {
      method("prepareCode4", prepare_code4),           method("prepareInt8", prepare_int8),
      method("releaseWeight", release_weight),         exported<kLinearPrepared>(instance),
      exported<kEmbeddingPrepared>(instance),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
