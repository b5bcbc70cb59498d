// Rough costs of kernels, to decide how many threads a call is worth. What matters is the size of a call that takes a few
// microseconds; larger ones use every thread whatever these say.
#pragma once

#include <cstdint>

#include "thread_pool.h"

namespace shardloom {

// A core of the last ten years reads 10 to 20 GB/s from memory and does 25 to 90 multiply-adds a nanosecond.
inline constexpr double kNsPerByte = 1.0 / 15;
inline constexpr double kNsPerMultiplyAdd = 1.0 / 40;
// An element of a row that is read and written in the nearest cache, and one that goes through `exp` as well.
inline constexpr double kNsPerElement = 1.0 / 8;
inline constexpr double kNsPerExponential = 1.0 / 2;

// Outputs of a weight that a thread takes at once: enough for the tiles of any kernel.
inline constexpr std::int64_t kOutputGrain = 16;

// The outputs of a linear layer, each with `weight_bytes` of weights, for `rows` rows of x.
inline Work linear_work(std::int64_t outputs, double weight_bytes, std::int64_t inputs, std::int64_t rows) {
  const double multiply_adds = static_cast<double>(inputs) * static_cast<double>(rows);
  return {outputs, kOutputGrain, weight_bytes * kNsPerByte + multiply_adds * kNsPerMultiplyAdd};
}

// Rows of `width` elements each.
inline Work row_work(std::int64_t rows, std::int64_t width, double element_ns = kNsPerElement) {
  return {rows, 1, static_cast<double>(width) * element_ns};
}

}  // namespace shardloom
