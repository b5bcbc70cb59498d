// Argmax in plain C++.
#include <cmath>
#include <limits>

#include "variants.h"

namespace shardloom::portable {

void argmax(const ArgmaxArgs& args, Range rows) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    const float* x = args.logits + m * args.logits_stride;
    float best = -std::numeric_limits<float>::infinity();
    std::int64_t column = -1;
    for (std::int64_t i = 0; i < args.columns; i++) {
      // The second comparison lets a first -Infinity count.
      if (x[i] > best || (column < 0 && x[i] == best)) {
        best = x[i];
        column = i;
      } else if (std::isnan(x[i])) {
        best = x[i];
        column = 0;
        break;
      }
    }
    args.values[m] = best;
    args.ids[m] = static_cast<std::int32_t>(args.first_id + (column < 0 ? 0 : column));
  }
}

}  // namespace shardloom::portable
