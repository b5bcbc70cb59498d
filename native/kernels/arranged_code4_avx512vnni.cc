// Arranged 4-bit codes on AVX-512 with VNNI.
#include "arranged_code4_avx512.h"
#include "variants.h"

namespace shardloom::avx512vnni {
namespace {

using avx512::Arranged;

struct Vnni {
  static __m512i pairs(__m512i sum, __m512i weights, __m512i x) { return _mm512_dpwssd_epi32(sum, weights, x); }
};

// Weights of 8 bits, 128 more than they are: vpdpbusd takes one operand without sign. The sum of a block begins with what
// that adds.
struct Code4Int8 {
  using Matrix = ArrangedCode4;
  static constexpr int kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 2;
  static constexpr int kTileRows = 8;
  using Word = __m512i;

  __m512i table;

  explicit Code4Int8(const ArrangedCode4& weight)
      : table(_mm512_xor_si512(
            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.codebook8))),
            _mm512_set1_epi8(-128))) {}

  static __m512i start(const std::int32_t* starts, std::int64_t at) { return _mm512_set1_epi32(starts[at]); }

  template <int kWord>
  Word decode(const std::uint8_t* unit) const {
    const __m512i codes = _mm512_loadu_si512(unit);
    const __m512i shifted = kWord == 0 ? codes : _mm512_srli_epi16(codes, 4);
    return _mm512_shuffle_epi8(table, _mm512_and_si512(shifted, _mm512_set1_epi8(15)));
  }

  static __m512i dot(__m512i sum, __m512i weights, __m512i x) { return _mm512_dpbusd_epi32(sum, weights, x); }
};

}  // namespace

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<avx512::Code4Int16<Vnni>>::linear(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int8>::linear(args, weight, groups);
}

}  // namespace shardloom::avx512vnni
