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
  static constexpr std::int64_t kStreamRows = 4;
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

// Whether entry i is i steps from the least: codes need no look-up then.
bool is_linear(const ArrangedCode4& weight) {
  const CodeSteps& steps = weight.steps16;
  for (int i = 0; i < 16; i++) {
    if (weight.codebook16[i] != steps.least + i * steps.unit) return false;
  }
  return true;
}

// Linear codes of 16 bits, for few rows: the codes as they are, which their unit is multiplied into at the end of a block. A sum may pass
// 32 bits until what it begins with is added: whole numbers wrap, and the whole fits.
struct LinearInt16 : Dot16 {
  using Matrix = ArrangedCode4;
  static constexpr std::int64_t kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 4;
  static constexpr Finish kFinish = Finish::scaled;
  static constexpr std::int64_t kStreamRows = kAnyRows;

  __m256i unit;

  explicit LinearInt16(const ArrangedCode4& weight) : unit(_mm256_set1_epi32(weight.steps16.unit)) {}

  void decode(const std::uint8_t* half, __m256i (&words)[kWords]) const {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half));
    const __m256i mask = _mm256_set1_epi16(15);
    words[0] = _mm256_and_si256(bytes, mask);
    words[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 8), mask);
    words[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    words[3] = _mm256_srli_epi16(bytes, 12);
  }
  __m256i finish(__m256i sum) const { return _mm256_mullo_epi32(sum, unit); }
};

// Weights of 8 bits, looked up in `entries`.
struct Code4Bytes {
  using Matrix = ArrangedCode4;
  static constexpr std::int64_t kUnitInputs = kCode4UnitInputs;
  static constexpr int kWords = 2;

  __m256i entries;

  explicit Code4Bytes(__m256i table) : entries(table) {}

  void decode(const std::uint8_t* half, __m256i (&words)[kWords]) const {
    const Nibbles nibbles = nibbles_at(half);
    words[0] = _mm256_shuffle_epi8(entries, nibbles.low);
    words[1] = _mm256_shuffle_epi8(entries, nibbles.high);
  }
};

struct Code4Signed : Code4Bytes, Dot8 {
  static constexpr std::int64_t kStreamRows = 32;

  explicit Code4Signed(const ArrangedCode4& weight)
      : Code4Bytes(table_of(reinterpret_cast<const std::uint8_t (&)[16]>(weight.codebook8))) {}
};

// The same as steps from the least of them.
struct Code4Short : Code4Bytes, DotShort {
  static constexpr std::int64_t kStreamRows = 16;

  explicit Code4Short(const ArrangedCode4& weight)
      : Code4Bytes(table_of_steps(weight)),
        DotShort{units_in_16_bits(weight), _mm256_set1_epi16(static_cast<std::int16_t>(weight.steps8.unit))} {}

  // Units of x whose products fit into 16 bits when they are added up, two a word.
  static std::int64_t units_in_16_bits(const ArrangedCode4& weight) {
    const std::int32_t largest = 2 * kInt8Limit * weight.steps8.most;
    return largest == 0 ? kCode4UnitInputs : 32767 / (largest * kWords);
  }

 private:
  static __m256i table_of_steps(const ArrangedCode4& weight) {
    std::uint8_t steps[16];
    for (int i = 0; i < 16; i++) {
      steps[i] = static_cast<std::uint8_t>((weight.codebook8[i] - weight.steps8.least) / weight.steps8.unit);
    }
    return table_of(steps);
  }
};

}  // namespace

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  // More rows share what is looked up, and then the ends of blocks take longer than look-ups.
  constexpr std::int64_t kLinearRows = 8;
  if (args.rows <= kLinearRows && is_linear(weight)) return Arranged<LinearInt16>::linear(args, weight, groups);
  Arranged<Code4Int16>::linear(args, weight, groups);
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  if (Code4Short::units_in_16_bits(weight) > 0) return Arranged<Code4Short>::linear(args, weight, groups);
  Arranged<Code4Signed>::linear(args, weight, groups);
}

}  // namespace shardloom::avx2
