// SiLU-mul in plain C++.
#include <cmath>

#include "variants.h"

namespace shardloom::portable {
namespace {

// x / (1 + exp(-x)), with the exponential of -|x| so that nothing overflows.
float silu(float x) {
  const float e = std::exp(-std::fabs(x));
  return (x < 0.0f ? x * e : x) / (1.0f + e);
}

}  // namespace

void silu_mul(const SiluMulArgs& args, Range rows) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    const float* gate = args.gate_up + m * args.gate_up_stride;
    const float* up = gate + args.width;
    float* out = args.out + m * args.out_stride;
    for (std::int64_t i = 0; i < args.width; i++) out[i] = silu(gate[i]) * up[i];
  }
}

}  // namespace shardloom::portable
