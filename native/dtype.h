// Element types. The names are those of src/core/dtype.ts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardloom {

enum class DType : std::uint8_t { f32, f16, bf16, i8, u8, i32, i64, f8_e4m3 };

inline constexpr int kDTypeCount = 8;

// Bytes of one element.
std::size_t dtype_bytes(DType dtype);
const char* dtype_name(DType dtype);
// False when no dtype has that name.
bool dtype_from_name(const char* name, DType* dtype);

}  // namespace shardloom
