#include "dtype.h"

#include <cstring>

namespace shardloom {
namespace {

struct DTypeInfo {
  const char* name;
  std::size_t bytes;
};

// In the order of DType.
constexpr DTypeInfo kDTypes[kDTypeCount] = {
    {"f32", 4}, {"f16", 2}, {"bf16", 2}, {"i8", 1}, {"u8", 1}, {"i32", 4}, {"i64", 8}, {"f8_e4m3", 1},
};

}  // namespace

std::size_t dtype_bytes(DType dtype) { return kDTypes[static_cast<int>(dtype)].bytes; }

const char* dtype_name(DType dtype) { return kDTypes[static_cast<int>(dtype)].name; }

bool dtype_from_name(const char* name, DType* dtype) {
  for (int i = 0; i < kDTypeCount; i++) {
    if (std::strcmp(name, kDTypes[i].name) == 0) {
      *dtype = static_cast<DType>(i);
      return true;
    }
  }
  return false;
}

}  // namespace shardloom
