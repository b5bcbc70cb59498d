// Arranged 8-bit codes on AVX-512. `Dots` says how whole numbers are multiplied and summed (arranged_dots_avx512.h).
#pragma once

#include "arranged_avx512.h"

namespace shardloom::avx512 {
namespace {

// Codes as 16 bits: of each row's four those in bytes 0 and 2, then those in bytes 1 and 3.
template <class Dots>
struct Int8Int16 : Int16Words<Dots> {
  using Matrix = ArrangedInt8;
  static constexpr int kUnitInputs = kInt8UnitInputs;
  static constexpr int kWords = 2;

  explicit Int8Int16(const ArrangedInt8&) {}

  template <int kWord>
  __m512i decode(const std::uint8_t* unit) const {
    const __m512i codes = _mm512_loadu_si512(unit);
    return _mm512_srai_epi16(kWord == 0 ? _mm512_slli_epi16(codes, 8) : codes, 8);
  }
};

template <class Dots>
struct Int8Int8 : Int8Words<Dots> {
  using Matrix = ArrangedInt8;
  static constexpr int kUnitInputs = kInt8UnitInputs;
  static constexpr int kWords = 1;
  using typename Int8Words<Dots>::Word;

  explicit Int8Int8(const ArrangedInt8&) {}

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    const __m512i codes = _mm512_loadu_si512(unit);
    return Dots::bytes(Dots::kUnsigned ? _mm512_sub_epi8(codes, _mm512_set1_epi8(kInt8Offset)) : codes);
  }
};

}  // namespace
}  // namespace shardloom::avx512
