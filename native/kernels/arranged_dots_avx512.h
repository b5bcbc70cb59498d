// Products of whole numbers on AVX-512 without VNNI, summed in the 32-bit lanes of their rows.
//
// A `Dots` has
//   kTileRows              as a Format's (arranged_avx512.h)
//   kUnsigned              whether it wants 8-bit weights less the least of them, which are without sign
//   Bytes                  what it wants of 8-bit weights, made by `bytes`
//   start(x_starts, at)    what the sum of block `at` of x begins with, at 8 bits
//   pairs(sum, weights, x) sum + the products of 16 bits
//   fours(sum, bytes, x)   sum + the products of 8 bits
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shardloom::avx512 {
namespace {

struct MultiplyAdd {
  static constexpr int kTileRows = 5;
  static constexpr bool kUnsigned = false;

  // vpmaddubsw takes one operand without sign, so it gets the magnitudes of weights, and x their signs.
  struct Bytes {
    __m512i magnitudes;
    __mmask64 negative;
  };

  static Bytes bytes(__m512i weights) { return {_mm512_abs_epi8(weights), _mm512_movepi8_mask(weights)}; }

  static __m512i start(const std::int32_t*, std::int64_t) { return _mm512_setzero_si512(); }

  static __m512i pairs(__m512i sum, __m512i weights, __m512i x) {
    return add_in_order(sum, _mm512_madd_epi16(weights, x));
  }

  // Two products of at most 128 * 127 do not saturate.
  static __m512i fours(__m512i sum, const Bytes& weights, __m512i x) {
    const __m512i signed_x = _mm512_mask_sub_epi8(x, weights.negative, _mm512_setzero_si512(), x);
    const __m512i pairs = _mm512_maddubs_epi16(weights.magnitudes, signed_x);
    return add_in_order(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }

 private:
  // Left alone, GCC adds products to each other first, and keeps them in memory until then.
  static __m512i add_in_order(__m512i sum, __m512i products) {
    sum = _mm512_add_epi32(sum, products);
    __asm__("" : "+v"(sum));
    return sum;
  }
};

}  // namespace
}  // namespace shardloom::avx512
