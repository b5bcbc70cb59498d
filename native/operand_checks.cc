#include "operand_checks.h"

namespace shardloom {
namespace {

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

}  // namespace

Region read_floats(Arguments& arguments, const char* name) {
  const Region region = arguments.tensor(name);
  if (arguments.ok() && !is_float(region.dtype)) {
    arguments.fail_type("expected %s to be f32, f16 or bf16 but it is %s", name, dtype_name(region.dtype));
  }
  return region;
}

void expect_columns(Arguments& arguments, const char* name, const Region& region, std::int64_t columns) {
  arguments.expect(region.columns == columns, "expected %s to have %lld columns but it has %lld", name,
                   static_cast<long long>(columns), static_cast<long long>(region.columns));
}

void expect_elements(Arguments& arguments, const char* name, const Region& region, std::int64_t least) {
  arguments.expect(elements(region) >= least, "expected %s to have at least %lld elements but it has %lld", name,
                   static_cast<long long>(least), static_cast<long long>(elements(region)));
}

void expect_rows(Arguments& arguments, const char* name, const Region& region, std::int64_t least) {
  arguments.expect(region.rows >= least, "expected %s to have at least %lld rows but it has %lld", name,
                   static_cast<long long>(least), static_cast<long long>(region.rows));
}

void expect_apart(Arguments& arguments, const Region& out, const char* name, const Region& other) {
  const auto begin = reinterpret_cast<std::uintptr_t>(out.data);
  const auto other_begin = reinterpret_cast<std::uintptr_t>(other.data);
  const bool overlap = begin < other_begin + other.bytes && other_begin < begin + out.bytes;
  arguments.expect(!overlap, "expected out not to overlap %s", name);
}

void expect_below(Arguments& arguments, const char* name, const std::int32_t* values, std::int64_t count,
                  std::int64_t limit) {
  for (std::int64_t i = 0; arguments.ok() && i < count; i++) {
    arguments.expect(values[i] >= 0 && values[i] < limit, "expected %s[%lld] to be from 0 to %lld but it is %d", name,
                     static_cast<long long>(i), static_cast<long long>(limit - 1), values[i]);
  }
}

CacheRegions read_cache(Arguments& arguments) {
  const Region keys = arguments.tensor("keys");
  const Region values = arguments.tensor("values");
  const Region scales = arguments.optional_tensor("scales", DType::f32);
  if (arguments.ok() && !is_float(keys.dtype) && keys.dtype != DType::i8) {
    arguments.fail_type("expected keys to be f32, f16, bf16 or i8 but they are %s", dtype_name(keys.dtype));
  }
  return {keys, values, scales};
}

CacheShape read_cache_shape(Arguments& arguments, const CacheRegions& cache) {
  const auto& [keys, values, scales] = cache;
  const CacheShape shape = {
      .kv_heads = arguments.integer("kvHeads", 1, kMaxInt32),
      .head_size = arguments.integer("headSize", 1, kMaxHeadSize),
      .block_size = arguments.integer("blockSize", 1, kMaxInt32),
  };
  if (!arguments.ok()) return {1, 1, 1};
  // Division, for the product of three 31-bit numbers may not fit.
  const bool fits = keys.columns % shape.head_size == 0 && keys.columns / shape.head_size % shape.block_size == 0 &&
                    keys.columns / shape.head_size / shape.block_size == shape.kv_heads;
  arguments.expect(fits, "expected a cache of [blocks, %lld, %lld, %lld] but its blocks have %lld elements",
                   static_cast<long long>(shape.kv_heads), static_cast<long long>(shape.block_size),
                   static_cast<long long>(shape.head_size), static_cast<long long>(keys.columns));
  arguments.expect(values.rows == keys.rows && values.columns == keys.columns && values.dtype == keys.dtype,
                   "expected values to have the shape and dtype of keys");
  const bool coded = keys.dtype == DType::i8;
  arguments.expect(coded == (scales.data != nullptr), "expected scales with keys of i8 and with no others but keys are %s",
                   dtype_name(keys.dtype));
  arguments.expect(!coded || (scales.rows == keys.rows && scales.columns == 2 * shape.kv_heads * shape.block_size),
                   "expected scales of [%lld, %lld, 2, %lld] but they are [%lld, %lld]",
                   static_cast<long long>(keys.rows), static_cast<long long>(shape.kv_heads),
                   static_cast<long long>(shape.block_size), static_cast<long long>(scales.rows),
                   static_cast<long long>(scales.columns));
  return shape;
}

}  // namespace shardloom
