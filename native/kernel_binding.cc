// Exports of the addon for src/kernels/native.ts. Every extent, index and block number is checked here, against what
// the operands were bound with; kernels trust what they get. Checks read each index once per call, which costs less
// than the work the index stands for.
#include "kernel_binding.h"

#include <iterator>

#include "arguments.h"
#include "attention_binding.h"
#include "kernels/kernels.h"
#include "operand_checks.h"
#include "operation.h"
#include "work_cost.h"

namespace shardloom {
namespace {

// Runs a kernel whose items are rows.
template <class Args>
void run(Arguments& arguments, const Work& work, const Args& args, void (*kernel)(const Args&, Range)) {
  arguments.instance().parallel(work, [&](Range rows, void*) { kernel(args, rows); });
}

// `heads` heads must end within the columns of x.
void expect_head_columns(Arguments& arguments, const Region& x, std::int64_t first_column, std::int64_t heads,
                         std::int64_t head_size) {
  arguments.expect(first_column + heads * head_size <= x.columns,
                   "expected columns up to %lld at most but received heads up to column %lld",
                   static_cast<long long>(x.columns), static_cast<long long>(first_column + heads * head_size));
}

void gather_rows(Arguments& arguments) {
  const Region out = arguments.tensor("out");
  const Region source = arguments.tensor("source", out.dtype);
  const Region indices = arguments.tensor("indices", DType::i32);
  const std::int64_t first = arguments.integer("first", 0, kMaxInt32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  expect_rows(arguments, "out", out, rows);
  expect_columns(arguments, "source", source, out.columns);
  expect_elements(arguments, "indices", indices, first + rows);
  expect_apart(arguments, out, "source", source);
  if (arguments.ok()) expect_below(arguments, "indices", integers(indices) + first, rows, source.rows);
  if (!arguments.ok()) return;
  const GatherArgs args = {
      .out = static_cast<std::byte*>(out.data),
      .source = static_cast<const std::byte*>(source.data),
      .indices = integers(indices) + first,
      .row_bytes = out.columns * static_cast<std::int64_t>(dtype_bytes(out.dtype)),
  };
  run(arguments, row_work(rows, args.row_bytes, kNsPerByte), args, arguments.instance().kernels->gather_rows);
}

constexpr Operation kGatherRows = {"gatherRows", 5, gather_rows};

// Reads what both norms share, from `x` on; `residual` is an empty region for the plain one.
NormArgs read_norm(Arguments& arguments, const Region& out, const Region& residual, bool add, std::int64_t* rows) {
  const Region x = arguments.tensor("x", DType::f32);
  const Region weight = arguments.tensor("weight", DType::f32);
  *rows = arguments.integer("rows", 0, kMaxInt32);
  const double epsilon = arguments.number("epsilon");
  expect_rows(arguments, "out", out, *rows);
  expect_rows(arguments, "x", x, *rows);
  expect_columns(arguments, "x", x, out.columns);
  if (add) {
    expect_rows(arguments, "residual", residual, *rows);
    expect_columns(arguments, "residual", residual, out.columns);
    expect_apart(arguments, out, "residual", residual);
  }
  arguments.expect(elements(weight) == out.columns, "expected weight to have %lld elements but it has %lld",
                   static_cast<long long>(out.columns), static_cast<long long>(elements(weight)));
  return {
      .out = static_cast<float*>(out.data),
      .out_stride = out.columns,
      .x = floats(x),
      .x_stride = out.columns,
      .residual = static_cast<float*>(residual.data),
      .residual_stride = out.columns,
      .weight = floats(weight),
      .width = out.columns,
      .epsilon = static_cast<float>(epsilon),
  };
}

void rms_norm(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  std::int64_t rows = 0;
  const NormArgs args = read_norm(arguments, out, Region{}, false, &rows);
  if (arguments.ok()) run(arguments, row_work(rows, args.width), args, arguments.instance().kernels->rms_norm);
}

constexpr Operation kRmsNorm = {"rmsNorm", 5, rms_norm};

void add_rms_norm(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region residual = arguments.tensor("residual", DType::f32);
  std::int64_t rows = 0;
  const NormArgs args = read_norm(arguments, out, residual, true, &rows);
  if (arguments.ok()) run(arguments, row_work(rows, args.width), args, arguments.instance().kernels->add_rms_norm);
}

constexpr Operation kAddRmsNorm = {"addRmsNorm", 6, add_rms_norm};

void head_norm(Arguments& arguments) {
  const Region x = arguments.tensor("x", DType::f32);
  const Region weight = arguments.tensor("weight", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  const std::int64_t heads = arguments.integer("heads", 0, kMaxInt32);
  const std::int64_t head_size = arguments.integer("headSize", 1, kMaxHeadSize);
  const double epsilon = arguments.number("epsilon");
  expect_rows(arguments, "x", x, rows);
  expect_elements(arguments, "weight", weight, head_size);
  expect_head_columns(arguments, x, first_column, heads, head_size);
  if (!arguments.ok()) return;
  const HeadNormArgs args = {
      .x = static_cast<float*>(x.data) + first_column,
      .x_stride = x.columns,
      .weight = floats(weight),
      .heads = heads,
      .head_size = head_size,
      .epsilon = static_cast<float>(epsilon),
  };
  run(arguments, row_work(rows, heads * head_size), args, arguments.instance().kernels->head_norm);
}

constexpr Operation kHeadNorm = {"headNorm", 7, head_norm};

void rope(Arguments& arguments) {
  const Region x = arguments.tensor("x", DType::f32);
  const Region positions = arguments.tensor("positions", DType::i32);
  const Region cos_sin = arguments.tensor("cosSin", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t first_column = arguments.integer("firstColumn", 0, kMaxInt32);
  const std::int64_t heads = arguments.integer("heads", 0, kMaxInt32);
  const std::int64_t head_size = arguments.integer("headSize", 2, kMaxHeadSize);
  arguments.expect(head_size % 2 == 0, "expected headSize to be even but received %lld",
                   static_cast<long long>(head_size));
  expect_rows(arguments, "x", x, rows);
  expect_elements(arguments, "positions", positions, rows);
  expect_columns(arguments, "cosSin", cos_sin, head_size);
  expect_head_columns(arguments, x, first_column, heads, head_size);
  if (arguments.ok()) expect_below(arguments, "positions", integers(positions), rows, cos_sin.rows);
  if (!arguments.ok()) return;
  const RopeArgs args = {
      .x = static_cast<float*>(x.data) + first_column,
      .x_stride = x.columns,
      .positions = integers(positions),
      .cos_sin = floats(cos_sin),
      .heads = heads,
      .head_size = head_size,
  };
  run(arguments, row_work(rows, heads * head_size), args, arguments.instance().kernels->rope);
}

constexpr Operation kRope = {"rope", 7, rope};

void write_kv(Arguments& arguments) {
  const CacheRegions cache = read_cache(arguments);
  const Region source = arguments.tensor("source", DType::f32);
  const Region slots = arguments.tensor("slots", DType::i32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t key_column = arguments.integer("keyColumn", 0, kMaxInt32);
  const std::int64_t value_column = arguments.integer("valueColumn", 0, kMaxInt32);
  const CacheShape shape = read_cache_shape(arguments, cache);
  const std::int64_t width = shape.kv_heads * shape.head_size;
  expect_rows(arguments, "source", source, rows);
  expect_elements(arguments, "slots", slots, rows);
  arguments.expect(key_column + width <= source.columns && value_column + width <= source.columns,
                   "expected columns up to %lld at most but keys end at %lld and values at %lld",
                   static_cast<long long>(source.columns), static_cast<long long>(key_column + width),
                   static_cast<long long>(value_column + width));
  if (arguments.ok()) expect_below(arguments, "slots", integers(slots), rows, cache.keys.rows * shape.block_size);
  if (!arguments.ok()) return;
  const WriteKvArgs args = {
      .keys = cache.keys.data,
      .values = cache.values.data,
      .scales = static_cast<float*>(cache.scales.data),
      .cache_dtype = cache.keys.dtype,
      .source = floats(source),
      .source_stride = source.columns,
      .slots = integers(slots),
      .key_column = key_column,
      .value_column = value_column,
      .kv_heads = shape.kv_heads,
      .head_size = shape.head_size,
      .block_size = shape.block_size,
  };
  run(arguments, row_work(rows, 2 * width), args, arguments.instance().kernels->write_kv);
}

constexpr Operation kWriteKv = {"writeKv", 11, write_kv};

void silu_mul(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region gate_up = arguments.tensor("gateUp", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  expect_rows(arguments, "out", out, rows);
  expect_rows(arguments, "gateUp", gate_up, rows);
  expect_columns(arguments, "gateUp", gate_up, 2 * out.columns);
  expect_apart(arguments, out, "gateUp", gate_up);
  if (!arguments.ok()) return;
  const SiluMulArgs args = {
      .out = static_cast<float*>(out.data),
      .out_stride = out.columns,
      .gate_up = floats(gate_up),
      .gate_up_stride = gate_up.columns,
      .width = out.columns,
  };
  run(arguments, row_work(rows, args.width, kNsPerExponential), args, arguments.instance().kernels->silu_mul);
}

constexpr Operation kSiluMul = {"siluMul", 3, silu_mul};

void argmax(Arguments& arguments) {
  const Region values = arguments.tensor("values", DType::f32);
  const Region ids = arguments.tensor("ids", DType::i32);
  const Region logits = arguments.tensor("logits", DType::f32);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxInt32);
  const std::int64_t columns = arguments.integer("columns", 0, kMaxInt32);
  const std::int64_t first_id = arguments.integer("firstId", 0, kMaxInt32);
  expect_elements(arguments, "values", values, rows);
  expect_elements(arguments, "ids", ids, rows);
  expect_rows(arguments, "logits", logits, rows);
  arguments.expect(columns <= logits.columns, "expected at most %lld columns but received %lld",
                   static_cast<long long>(logits.columns), static_cast<long long>(columns));
  arguments.expect(first_id + columns <= kMaxInt32, "expected ids below 2^31 but they end at %lld",
                   static_cast<long long>(first_id + columns));
  if (!arguments.ok()) return;
  const ArgmaxArgs args = {
      .values = static_cast<float*>(values.data),
      .ids = static_cast<std::int32_t*>(ids.data),
      .logits = floats(logits),
      .logits_stride = logits.columns,
      .columns = columns,
      .first_id = first_id,
  };
  run(arguments, row_work(rows, columns), args, arguments.instance().kernels->argmax);
}

constexpr Operation kArgmax = {"argmax", 6, argmax};

}  // namespace

napi_status register_kernels(napi_env env, napi_value exports, AddonInstance* instance) {
  const napi_property_descriptor methods[] = {
      exported<kGatherRows>(instance), exported<kRmsNorm>(instance), exported<kAddRmsNorm>(instance),
      exported<kHeadNorm>(instance), exported<kRope>(instance), exported<kWriteKv>(instance),
      exported<kAttention>(instance), exported<kSiluMul>(instance), exported<kArgmax>(instance),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
