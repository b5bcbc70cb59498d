// Rotary embedding for any vector type `V`.
#pragma once

#include "kernels.h"

namespace shardloom {
namespace {

template <class V>
struct Rope {
  // Both products are rounded before the sum: a fused operation would treat the two halves of a pair differently.
  static void rotate(float* head, const float* cosines, const float* sines, std::int64_t half) {
    std::int64_t i = 0;
    for (; i + V::kLanes <= half; i += V::kLanes) {
      const V a = V::load(head + i);
      const V b = V::load(head + half + i);
      const V c = V::load(cosines + i);
      const V s = V::load(sines + i);
      (a * c - b * s).store(head + i);
      (b * c + a * s).store(head + half + i);
    }
    if (i < half) {
      const std::int64_t rest = half - i;
      const V a = V::load_first(head + i, rest);
      const V b = V::load_first(head + half + i, rest);
      const V c = V::load_first(cosines + i, rest);
      const V s = V::load_first(sines + i, rest);
      (a * c - b * s).store_first(head + i, rest);
      (b * c + a * s).store_first(head + half + i, rest);
    }
  }

  static void run(const RopeArgs& args, Range rows) {
    const std::int64_t half = args.head_size / 2;
    for (std::int64_t m = rows.begin; m < rows.end; m++) {
      const float* cosines = args.cos_sin + args.positions[m] * args.head_size;
      float* x = args.x + m * args.x_stride;
      for (std::int64_t h = 0; h < args.heads; h++) rotate(x + h * args.head_size, cosines, cosines + half, half);
    }
  }
};

}  // namespace
}  // namespace shardloom
