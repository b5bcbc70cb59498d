// Argmax for any vector type `V`: one pass finds the largest value, a second one where it stands first.
#pragma once

#include <cmath>

#include "kernels.h"

namespace shardloom {
namespace {

template <class V>
struct Argmax {
  static constexpr int kParts = 4;
  static constexpr std::int64_t kStep = kParts * V::kLanes;
  static constexpr float kLowest = -__builtin_inff();
  static constexpr float kNaN = __builtin_nanf("");
  static constexpr std::uint32_t kAllLanes = (std::uint32_t{1} << V::kLanes) - 1;

  // NaN if there is one. V::max passes it over, for it returns its second operand then, so that it is looked for apart.
  static float largest(const float* x, std::int64_t count) {
    V best[kParts];
    for (V& part : best) part = V::set(kLowest);
    std::uint32_t numbers = kAllLanes;
    std::int64_t i = 0;
    for (; i + kStep <= count; i += kStep) {
      for (int p = 0; p < kParts; p++) {
        const V values = V::load(x + i + p * V::kLanes);
        best[p] = V::max(values, best[p]);
        numbers &= V::equal_bits(values, values);
      }
    }
    if (numbers != kAllLanes) return kNaN;
    float value = V::max(V::max(best[0], best[1]), V::max(best[2], best[3])).max_lane();
    for (; i < count; i++) {
      if (std::isnan(x[i])) return kNaN;
      if (x[i] > value) value = x[i];
    }
    return value;
  }

  // The first column that holds `value`; 0 when none does, which is to say that there is a NaN, or no column.
  static std::int64_t first_of(const float* x, std::int64_t count, float value) {
    const V wanted = V::set(value);
    std::int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) {
      const std::uint32_t found = V::equal_bits(V::load(x + i), wanted);
      if (found != 0) return i + __builtin_ctz(found);
    }
    for (; i < count; i++) {
      if (x[i] == value) return i;
    }
    return 0;
  }

  static void run(const ArgmaxArgs& args, Range rows) {
    for (std::int64_t m = rows.begin; m < rows.end; m++) {
      const float* x = args.logits + m * args.logits_stride;
      const float value = largest(x, args.columns);
      args.values[m] = value;
      args.ids[m] = static_cast<std::int32_t>(args.first_id + first_of(x, args.columns, value));
    }
  }
};

}  // namespace
}  // namespace shardloom
