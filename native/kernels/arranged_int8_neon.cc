#include "arranged_int8_neon.h"
#include "variants.h"

namespace shardloom::neon {

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  ArrangedLinear<ArrangedInt8Format, Int16Products>::run(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  ArrangedLinear<ArrangedInt8Format, Int8Products>::run(args, weight, groups);
}

}  // namespace shardloom::neon
