// Arranged 8-bit codes on AVX-512 without VNNI.
#include "arranged_int8_avx512.h"
#include "arranged_dots_avx512.h"
#include "variants.h"

namespace shardloom::avx512 {

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int16<MultiplyAdd>>::linear(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int8<MultiplyAdd>>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512
