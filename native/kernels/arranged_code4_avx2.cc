// Arranged 4-bit codes on AVX2. A code is looked up as the bytes of a whole number, by shuffles.
#include "arranged_avx2.h"
#include "variants.h"

namespace shardloom::avx2 {
namespace {

// A table of 16 bytes in both halves of a register.
__m256i table_of(const std::uint8_t (&entries)[16]) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
}

struct Nibbles {
  __m256i low;
  __m256i high;
};

Nibbles nibbles_at(const std::uint8_t* half) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half));
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask)};
}

struct Code4Int16 : Dot16 {
  using Matrix = ArrangedCode4;
  static constexpr std::int64_t kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 4;

  __m256i low_bytes;
  __m256i high_bytes;

  explicit Code4Int16(const ArrangedCode4& weight) {
    std::uint8_t low[16];
    std::uint8_t high[16];
    for (int i = 0; i < 16; i++) {
      const auto bits = static_cast<std::uint16_t>(weight.codebook16[i]);
      low[i] = static_cast<std::uint8_t>(bits & 0xff);
      high[i] = static_cast<std::uint8_t>(bits >> 8);
    }
    low_bytes = table_of(low);
    high_bytes = table_of(high);
  }

  // Of each row's four codes those in bytes 0 and 2, then those in bytes 1 and 3.
  void look_up(__m256i codes, __m256i& even, __m256i& odd) const {
    const __m256i low = _mm256_shuffle_epi8(low_bytes, codes);
    const __m256i high = _mm256_shuffle_epi8(high_bytes, codes);
    even = _mm256_blendv_epi8(low, _mm256_slli_epi16(high, 8), _mm256_set1_epi16(static_cast<std::int16_t>(0xff00)));
    odd = _mm256_blendv_epi8(_mm256_srli_epi16(low, 8), high, _mm256_set1_epi16(static_cast<std::int16_t>(0xff00)));
  }

  void decode(const std::uint8_t* half, __m256i (&words)[kWords]) const {
    const Nibbles nibbles = nibbles_at(half);
    look_up(nibbles.low, words[0], words[1]);
    look_up(nibbles.high, words[2], words[3]);
  }
};

struct Code4Int8 : Dot8 {
  using Matrix = ArrangedCode4;
  static constexpr std::int64_t kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 2;

  __m256i entries;

  explicit Code4Int8(const ArrangedCode4& weight) {
    std::uint8_t bytes[16];
    std::memcpy(bytes, weight.codebook8, sizeof bytes);
    entries = table_of(bytes);
  }

  void decode(const std::uint8_t* half, __m256i (&words)[kWords]) const {
    const Nibbles nibbles = nibbles_at(half);
    words[0] = _mm256_shuffle_epi8(entries, nibbles.low);
    words[1] = _mm256_shuffle_epi8(entries, nibbles.high);
  }
};

}  // namespace

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int16>::linear(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  Arranged<Code4Int8>::linear(args, weight, groups);
}

}  // namespace shardloom::avx2
