// Checks of operands that the bindings of kernels share. All of them report through `Arguments`.
#pragma once

#include "arguments.h"
#include "kernels/kernels.h"

namespace shardloom {

inline constexpr std::int64_t kMaxInt32 = INT32_MAX;

inline std::int64_t elements(const Region& region) { return region.rows * region.columns; }

inline const float* floats(const Region& region) { return static_cast<const float*>(region.data); }

inline const std::int32_t* integers(const Region& region) { return static_cast<const std::int32_t*>(region.data); }

// The next argument: a tensor of f32, f16 or bf16.
Region read_floats(Arguments& arguments, const char* name);

void expect_columns(Arguments& arguments, const char* name, const Region& region, std::int64_t columns);
void expect_elements(Arguments& arguments, const char* name, const Region& region, std::int64_t least);
void expect_rows(Arguments& arguments, const char* name, const Region& region, std::int64_t least);

// `out` must share no byte with `other`.
void expect_apart(Arguments& arguments, const Region& out, const char* name, const Region& other);

// Each of values[0 .. count) must lie in [0, limit). Reads them: to be called while ok() only.
void expect_below(Arguments& arguments, const char* name, const std::int32_t* values, std::int64_t count,
                  std::int64_t limit);

// Keys and values of a paged cache: f32, f16 or bf16, or codes of i8 with their scales.
struct CacheRegions {
  Region keys;
  Region values;
  Region scales;  // `data` is null unless keys and values are i8
};

// The next three arguments.
CacheRegions read_cache(Arguments& arguments);

// Extents of a paged cache `[blocks, kv_heads, block_size, head_size]`.
struct CacheShape {
  std::int64_t kv_heads;
  std::int64_t head_size;
  std::int64_t block_size;
};

// The next three arguments; they, the values and the scales must agree with the keys.
CacheShape read_cache_shape(Arguments& arguments, const CacheRegions& cache);

}  // namespace shardloom
