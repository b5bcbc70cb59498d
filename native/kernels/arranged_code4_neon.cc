#include "arranged_code4_neon.h"
#include "variants.h"

namespace shardloom::neon {

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  ArrangedLinear<ArrangedCode4Format, Int16Products>::run(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  ArrangedLinear<ArrangedCode4Format, Int8Products>::run(args, weight, groups);
}

}  // namespace shardloom::neon
