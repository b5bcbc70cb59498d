// Arranged 4-bit codes on AVX-512 with VNNI.
#include "arranged_code4_avx512.h"
#include "arranged_dots_avx512vnni.h"
#include "variants.h"

namespace shardloom::avx512vnni {

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  avx512::Arranged<avx512::Code4Int16<Vnni>>::linear(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  avx512::Arranged<avx512::Code4Int8<Vnni>>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512vnni
