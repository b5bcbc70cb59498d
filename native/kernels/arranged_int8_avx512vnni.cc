// Arranged 8-bit codes on AVX-512 with VNNI.
#include "arranged_int8_avx512.h"
#include "variants.h"

namespace shardloom::avx512vnni {
namespace {

using avx512::Arranged;

struct Vnni {
  static __m512i pairs(__m512i sum, __m512i weights, __m512i x) { return _mm512_dpwssd_epi32(sum, weights, x); }
};

// Codes with 128 added: vpdpbusd takes one operand without sign. The sum of a block begins with what that adds.
struct Int8Int8 {
  using Matrix = ArrangedInt8;
  static constexpr int kUnitInputs = kInt8UnitInputs;
  static constexpr int kWords = 1;
  static constexpr int kTileRows = 8;
  using Word = __m512i;

  explicit Int8Int8(const ArrangedInt8&) {}

  static __m512i start(const std::int32_t* starts, std::int64_t at) { return _mm512_set1_epi32(starts[at]); }

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    return _mm512_xor_si512(_mm512_loadu_si512(unit), _mm512_set1_epi8(-128));
  }

  static __m512i dot(__m512i sum, __m512i weights, __m512i x) { return _mm512_dpbusd_epi32(sum, weights, x); }
};

}  // namespace

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<avx512::Int8Int16<Vnni>>::linear(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int8>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512vnni
