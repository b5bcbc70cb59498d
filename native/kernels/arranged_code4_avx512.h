// Arranged 4-bit codes on AVX-512. `Dots` says how whole numbers are multiplied and summed (arranged_dots_avx512.h).
#pragma once

#include "arranged_avx512.h"

namespace shardloom::avx512 {
namespace {

// Weights of 16 bits: one shuffle looks 32 codes up, whose other bits it ignores, for the table is there twice.
template <class Dots>
struct Code4Int16 : Int16Words<Dots> {
  using Matrix = ArrangedCode4;
  static constexpr int kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 4;
  static constexpr bool kWholeScales = true;

  __m512i table;
  // Largest magnitude of an entry.
  std::int64_t largest = 0;

  explicit Code4Int16(const ArrangedCode4& weight)
      : table(_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight.codebook16)))) {
    for (const std::int64_t entry : weight.codebook16) {
      const std::int64_t magnitude = entry < 0 ? -entry : entry;
      largest = magnitude > largest ? magnitude : largest;
    }
  }

  bool small_sums(std::int64_t block) const {
    return block * largest * kInt16LimitOfCode4 < Arranged<Code4Int16>::kOffsetSums;
  }

  template <int kWord>
  __m512i decode(const std::uint8_t* unit) const {
    constexpr int kShifts[kWords] = {0, 8, 4, 12};
    const __m512i codes = _mm512_loadu_si512(unit);
    return _mm512_permutexvar_epi16(kWord == 0 ? codes : _mm512_srli_epi16(codes, kShifts[kWord]), table);
  }
};

// Weights of 8 bits: one shuffle looks 64 codes up.
template <class Dots>
struct Code4Int8 : Int8Words<Dots> {
  using Matrix = ArrangedCode4;
  static constexpr int kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 2;
  using typename Int8Words<Dots>::Word;

  __m512i table;

  explicit Code4Int8(const ArrangedCode4& weight)
      : table(_mm512_sub_epi8(
            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.codebook8))),
            _mm512_set1_epi8(static_cast<char>(Dots::kUnsigned ? weight.steps8.least : 0)))) {}

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    const __m512i codes = _mm512_loadu_si512(unit);
    const __m512i shifted = kWord == 0 ? codes : _mm512_srli_epi16(codes, 4);
    return Dots::bytes(_mm512_shuffle_epi8(table, _mm512_and_si512(shifted, _mm512_set1_epi8(15))));
  }
};

}  // namespace
}  // namespace shardloom::avx512
