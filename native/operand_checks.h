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

// Extents of a paged cache `[blocks, kv_heads, block_size, head_size]`.
struct CacheShape {
  std::int64_t kv_heads;
  std::int64_t head_size;
  std::int64_t block_size;
};

// The next three arguments; they and `values` must agree with `keys`.
CacheShape read_cache_shape(Arguments& arguments, const Region& keys, const Region& values);

}  // namespace shardloom
