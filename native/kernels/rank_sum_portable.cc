// Sums over ranks in plain C++.
#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

template <class Element>
void sum_as(const RankSumArgs& args, Range elements) {
  for (std::int64_t i = elements.begin; i < elements.end; i++) {
    float sum = to_float(static_cast<const Element*>(args.sources[0])[i]);
    for (std::int64_t r = 1; r < args.ranks; r++) sum += to_float(static_cast<const Element*>(args.sources[r])[i]);
    args.out[i] = sum == sum ? sum : float_of_bits(0x7fc00000u);
    if (args.copy != nullptr) args.copy[i] = args.out[i];
  }
}

}  // namespace

void sum_ranks(const RankSumArgs& args, Range elements) {
  if (args.payload == DType::bf16) {
    sum_as<bf16>(args, elements);
  } else {
    sum_as<float>(args, elements);
  }
}

void narrow_bf16(bf16* out, const float* x, Range elements) {
  for (std::int64_t i = elements.begin; i < elements.end; i++) from_float(x[i], out + i);
}

}  // namespace shardloom::portable
