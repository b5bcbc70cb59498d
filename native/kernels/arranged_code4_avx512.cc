// Arranged 4-bit codes on AVX-512 without VNNI.
#include "arranged_code4_avx512.h"
#include "variants.h"

namespace shardloom::avx512 {
namespace {

struct MultiplyAdd {
  static __m512i pairs(__m512i sum, __m512i weights, __m512i x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(weights, x));
  }
};

// Weights of 8 bits: vpmaddubsw takes one operand without sign, so it gets magnitudes, and x the signs. Two products of at
// most 127 * 127 do not saturate.
struct Code4Int8 {
  using Matrix = ArrangedCode4;
  static constexpr int kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 2;
  static constexpr int kTileRows = 8;
  struct Word {
    __m512i magnitudes;
    __mmask64 negative;
  };

  __m512i table;

  explicit Code4Int8(const ArrangedCode4& weight)
      : table(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.codebook8)))) {}

  static __m512i start(const std::int32_t*, std::int64_t) { return _mm512_setzero_si512(); }

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    const __m512i codes = _mm512_loadu_si512(unit);
    const __m512i shifted = kWord == 0 ? codes : _mm512_srli_epi16(codes, 4);
    const __m512i weights = _mm512_shuffle_epi8(table, _mm512_and_si512(shifted, _mm512_set1_epi8(15)));
    return {_mm512_abs_epi8(weights), _mm512_movepi8_mask(weights)};
  }

  static __m512i dot(__m512i sum, const Word& weights, __m512i x) {
    const __m512i signed_x = _mm512_mask_sub_epi8(x, weights.negative, _mm512_setzero_si512(), x);
    const __m512i pairs = _mm512_maddubs_epi16(weights.magnitudes, signed_x);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};

}  // namespace

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int16<MultiplyAdd>>::linear(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int8>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512
