// Arranged 8-bit codes on AVX-512 without VNNI.
#include "arranged_int8_avx512.h"
#include "variants.h"

namespace shardloom::avx512 {
namespace {

struct MultiplyAdd {
  static __m512i pairs(__m512i sum, __m512i weights, __m512i x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(weights, x));
  }
};

// vpmaddubsw takes one operand without sign, so it gets the magnitudes of weights, and x their signs. Two products of at
// most 128 * 127 do not saturate.
struct Int8Int8 {
  using Matrix = ArrangedInt8;
  static constexpr int kUnitInputs = kInt8UnitInputs;
  static constexpr int kWords = 1;
  static constexpr int kTileRows = 8;
  struct Word {
    __m512i magnitudes;
    __mmask64 negative;
  };

  explicit Int8Int8(const ArrangedInt8&) {}

  static __m512i start(const std::int32_t*, std::int64_t) { return _mm512_setzero_si512(); }

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    const __m512i weights = _mm512_loadu_si512(unit);
    return {_mm512_abs_epi8(weights), _mm512_movepi8_mask(weights)};
  }

  static __m512i dot(__m512i sum, const Word& weights, __m512i x) {
    const __m512i signed_x = _mm512_mask_sub_epi8(x, weights.negative, _mm512_setzero_si512(), x);
    const __m512i pairs = _mm512_maddubs_epi16(weights.magnitudes, signed_x);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};

}  // namespace

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int16<MultiplyAdd>>::linear(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int8>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512
