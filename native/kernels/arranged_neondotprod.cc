#include "arranged_code4_neon.h"
#include "arranged_int8_neon.h"
#include "variants.h"

namespace shardloom::neondotprod {

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  ArrangedLinear<ArrangedCode4Format, Int8DotProducts>::run(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  ArrangedLinear<ArrangedInt8Format, Int8DotProducts>::run(args, weight, groups);
}

}  // namespace shardloom::neondotprod
