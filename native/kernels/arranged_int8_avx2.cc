// Arranged 8-bit codes on AVX2: whole numbers as they are.
#include "arranged_avx2.h"
#include "variants.h"

namespace shardloom::avx2 {
namespace {

__m256i codes_at(const std::uint8_t* half) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)); }

struct Int8Int16 : Dot16 {
  using Matrix = ArrangedInt8;
  static constexpr std::int64_t kStreamRows = 24;
  static constexpr std::int64_t kUnitInputs = kInt8UnitInputs;
  static constexpr int kWords = 2;

  explicit Int8Int16(const ArrangedInt8&) {}

  // Of each row's four codes those in bytes 0 and 2, then those in bytes 1 and 3.
  void decode(const std::uint8_t* half, __m256i (&words)[kWords]) const {
    const __m256i codes = codes_at(half);
    words[0] = _mm256_srai_epi16(_mm256_slli_epi16(codes, 8), 8);
    words[1] = _mm256_srai_epi16(codes, 8);
  }
};

struct Int8Int8 : Dot8 {
  using Matrix = ArrangedInt8;
  static constexpr std::int64_t kStreamRows = kAnyRows;
  static constexpr std::int64_t kUnitInputs = kInt8UnitInputs;
  static constexpr int kWords = 1;

  explicit Int8Int8(const ArrangedInt8&) {}

  void decode(const std::uint8_t* half, __m256i (&words)[kWords]) const { words[0] = codes_at(half); }
};

}  // namespace

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int16>::linear(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  Arranged<Int8Int8>::linear(args, weight, groups);
}

}  // namespace shardloom::avx2
