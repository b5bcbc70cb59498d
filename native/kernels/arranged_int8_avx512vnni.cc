// Arranged 8-bit codes on AVX-512 with VNNI.
#include "arranged_int8_avx512.h"
#include "arranged_dots_avx512vnni.h"
#include "variants.h"

namespace shardloom::avx512vnni {

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  avx512::Arranged<avx512::Int8Int16<Vnni>>::linear(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  avx512::Arranged<avx512::Int8Int8<Vnni>>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512vnni
