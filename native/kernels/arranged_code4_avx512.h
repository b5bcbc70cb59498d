// Arranged 4-bit codes on AVX-512. `Dot` says how words of 16 and of 8 bits are multiplied and summed.
#pragma once

#include "arranged_avx512.h"

namespace shardloom::avx512 {
namespace {

// Weights of 16 bits: one shuffle looks 32 codes up, whose other bits it ignores, for the table is there twice.
template <class Dot>
struct Code4Int16 {
  using Matrix = ArrangedCode4;
  static constexpr int kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 4;
  static constexpr int kTileRows = 4;
  using Word = __m512i;

  __m512i table;

  explicit Code4Int16(const ArrangedCode4& weight)
      : table(_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight.codebook16)))) {}

  static __m512i start(const std::int32_t*, std::int64_t) { return _mm512_setzero_si512(); }

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    constexpr int kShifts[kWords] = {0, 8, 4, 12};
    const __m512i codes = _mm512_loadu_si512(unit);
    return _mm512_permutexvar_epi16(kWord == 0 ? codes : _mm512_srli_epi16(codes, kShifts[kWord]), table);
  }

  static __m512i dot(__m512i sum, __m512i weights, __m512i x) { return Dot::pairs(sum, weights, x); }
};

}  // namespace
}  // namespace shardloom::avx512
