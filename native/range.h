#pragma once

#include <cstdint>

namespace shardloom {

// [begin, end)
struct Range {
  std::int64_t begin;
  std::int64_t end;
};

}  // namespace shardloom
