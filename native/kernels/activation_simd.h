// SiLU-mul for any vector type `V`.
#pragma once

#include "vector_math.h"

namespace shardloom {
namespace {

template <class V>
struct Activation {
  // x / (1 + exp(-x)), with the exponential of -|x| so that nothing overflows.
  static V silu(V x) {
    const V e = exp_nonpositive(V::zero() - V::abs(x));
    const V numerator = V::where_less(x, V::zero(), x * e, x);
    return numerator / (V::set(1.0f) + e);
  }

  static void run(const SiluMulArgs& args, Range rows) {
    for (std::int64_t m = rows.begin; m < rows.end; m++) {
      const float* gate = args.gate_up + m * args.gate_up_stride;
      const float* up = gate + args.width;
      float* out = args.out + m * args.out_stride;
      std::int64_t i = 0;
      for (; i + V::kLanes <= args.width; i += V::kLanes) (silu(V::load(gate + i)) * V::load(up + i)).store(out + i);
      if (i < args.width) {
        const std::int64_t rest = args.width - i;
        (silu(V::load_first(gate + i, rest)) * V::load_first(up + i, rest)).store_first(out + i, rest);
      }
    }
  }
};

}  // namespace
}  // namespace shardloom
