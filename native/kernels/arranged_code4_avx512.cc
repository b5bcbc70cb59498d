// Arranged 4-bit codes on AVX-512 without VNNI.
#include "arranged_code4_avx512.h"
#include "arranged_dots_avx512.h"
#include "variants.h"

namespace shardloom::avx512 {

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int16<MultiplyAdd>>::linear(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int8<MultiplyAdd>>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512
