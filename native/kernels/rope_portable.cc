// Rotary embedding in plain C++.
#include "variants.h"

namespace shardloom::portable {

void rope(const RopeArgs& args, Range rows) {
  const std::int64_t half = args.head_size / 2;
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    const float* cosines = args.cos_sin + args.positions[m] * args.head_size;
    const float* sines = cosines + half;
    for (std::int64_t h = 0; h < args.heads; h++) {
      float* head = args.x + m * args.x_stride + h * args.head_size;
      for (std::int64_t i = 0; i < half; i++) {
        const float a = head[i];
        const float b = head[half + i];
        head[i] = a * cosines[i] - b * sines[i];
        head[half + i] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

}  // namespace shardloom::portable
