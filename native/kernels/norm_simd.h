// RMSNorm for any vector type `V`. The sum of squares runs in kSums vector accumulators, folded at the end.
#pragma once

#include "kernels.h"

namespace shardloom {
namespace {

template <class V>
struct Norm {
  static constexpr int kSums = 4;
  static constexpr std::int64_t kStep = kSums * V::kLanes;

  // Sum of squares of a row; with kAdd, of residual + x, which is stored in residual.
  template <bool kAdd>
  static float sum_of_squares(const float* x, float* residual, std::int64_t width) {
    V sums[kSums];
    for (V& sum : sums) sum = V::zero();
    std::int64_t i = 0;
    for (; i + kStep <= width; i += kStep) {
      for (int s = 0; s < kSums; s++) {
        const std::int64_t at = i + s * V::kLanes;
        V value = V::load(x + at);
        if constexpr (kAdd) {
          value = V::load(residual + at) + value;
          value.store(residual + at);
        }
        sums[s] = V::fma(value, value, sums[s]);
      }
    }
    for (; i < width; i += V::kLanes) {
      const std::int64_t rest = width - i < V::kLanes ? width - i : V::kLanes;
      V value = V::load_first(x + i, rest);
      if constexpr (kAdd) {
        value = V::load_first(residual + i, rest) + value;
        value.store_first(residual + i, rest);
      }
      sums[0] = V::fma(value, value, sums[0]);
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
  }

  static void scale(float* out, const float* x, const float* weight, std::int64_t width, float factor) {
    const V factors = V::set(factor);
    std::int64_t i = 0;
    for (; i + V::kLanes <= width; i += V::kLanes) (V::load(x + i) * factors * V::load(weight + i)).store(out + i);
    if (i < width) {
      const std::int64_t rest = width - i;
      (V::load_first(x + i, rest) * factors * V::load_first(weight + i, rest)).store_first(out + i, rest);
    }
  }

  static float factor(float squares, std::int64_t width, float epsilon) {
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + epsilon);
  }

  template <bool kAdd>
  static void run(const NormArgs& args, Range rows) {
    for (std::int64_t m = rows.begin; m < rows.end; m++) {
      const float* x = args.x + m * args.x_stride;
      float* residual = kAdd ? args.residual + m * args.residual_stride : nullptr;
      const float squares = sum_of_squares<kAdd>(x, residual, args.width);
      scale(args.out + m * args.out_stride, kAdd ? residual : x, args.weight, args.width,
            factor(squares, args.width, args.epsilon));
    }
  }

  static void run_heads(const HeadNormArgs& args, Range rows) {
    for (std::int64_t m = rows.begin; m < rows.end; m++) {
      for (std::int64_t h = 0; h < args.heads; h++) {
        float* head = args.x + m * args.x_stride + h * args.head_size;
        const float squares = sum_of_squares<false>(head, nullptr, args.head_size);
        scale(head, head, args.weight, args.head_size, factor(squares, args.head_size, args.epsilon));
      }
    }
  }
};

}  // namespace
}  // namespace shardloom
