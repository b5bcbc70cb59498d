// 4-bit codes on AVX2, which looks up bytes far faster than floats: the codebook is kept as its four planes of bytes,
// whose look-ups are put together to floats.
#include "block_linear_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {
namespace {

template <bool kMinimums>
struct Code4 {
  using Matrix = Code4Matrix;
  using Code = std::uint8_t;
  struct Scale {
    __m256 scale;
    __m256 minimum;
  };

  static constexpr int kStep = 32;
  static constexpr int kCodesPerByte = 2;
  static constexpr bool kArranged = true;
  static constexpr bool kAnyInputs = false;
  template <int M>
  static constexpr int streams() {
    return M == 1 ? 4 : 2;
  }

  // Byte b of each of the sixteen entries, in both halves.
  __m256i planes[4];

  explicit Code4(const Code4Matrix& weight) {
    for (int b = 0; b < 4; b++) {
      std::uint8_t bytes[16];
      for (int i = 0; i < 16; i++) bytes[i] = static_cast<std::uint8_t>(bits_of_float(weight.codebook[i]) >> (8 * b));
      planes[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
  }

  Scale scale(float scale, float minimum) const {
    return {_mm256_set1_ps(scale), kMinimums ? _mm256_set1_ps(minimum) : _mm256_setzero_ps()};
  }

  // The lower half of `codes` gets the codes of even inputs, the upper half those of odd ones. So a vector of eight
  // inputs holds four even ones, then four odd ones.
  template <int kInputs>
  void decode(const std::uint8_t* codes, const Scale& scale, Vec (&out)[kInputs / Vec::kLanes]) const {
    if constexpr (kInputs == 16) {
      std::int64_t word;
      std::memcpy(&word, codes, sizeof word);
      const __m256i indices = even_and_odd(_mm256_set1_epi64x(word));
      const __m256i low = _mm256_unpacklo_epi8(plane(0, indices), plane(1, indices));
      const __m256i high = _mm256_unpacklo_epi8(plane(2, indices), plane(3, indices));
      out[0].v = apply(_mm256_unpacklo_epi16(low, high), scale);
      out[1].v = apply(_mm256_unpackhi_epi16(low, high), scale);
    } else {
      static_assert(kInputs == 32);
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
      const __m256i indices = even_and_odd(_mm256_broadcastsi128_si256(bytes));
      const __m256i plane0 = plane(0, indices), plane1 = plane(1, indices);
      const __m256i plane2 = plane(2, indices), plane3 = plane(3, indices);
      const __m256i low01 = _mm256_unpacklo_epi8(plane0, plane1), low23 = _mm256_unpacklo_epi8(plane2, plane3);
      const __m256i high01 = _mm256_unpackhi_epi8(plane0, plane1), high23 = _mm256_unpackhi_epi8(plane2, plane3);
      out[0].v = apply(_mm256_unpacklo_epi16(low01, low23), scale);
      out[1].v = apply(_mm256_unpackhi_epi16(low01, low23), scale);
      out[2].v = apply(_mm256_unpacklo_epi16(high01, high23), scale);
      out[3].v = apply(_mm256_unpackhi_epi16(high01, high23), scale);
    }
  }

  static Vec arrange(Vec v) { return {_mm256_permutevar8x32_ps(v.v, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7))}; }
  static Vec restore(Vec v) { return {_mm256_permutevar8x32_ps(v.v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))}; }

 private:
  static __m256i even_and_odd(__m256i bytes) {
    return _mm256_and_si256(_mm256_srlv_epi64(bytes, _mm256_setr_epi64x(4, 4, 0, 0)), _mm256_set1_epi8(15));
  }

  __m256i plane(int b, __m256i indices) const { return _mm256_shuffle_epi8(planes[b], indices); }

  static __m256 apply(__m256i entries, const Scale& scale) {
    const __m256 scaled = _mm256_mul_ps(_mm256_castsi256_ps(entries), scale.scale);
    return kMinimums ? _mm256_add_ps(scaled, scale.minimum) : scaled;
  }
};

}  // namespace

void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs) {
  if (weight.minimums == nullptr) return BlockLinear<Vec, Code4<false>>::linear(args, weight, outputs);
  BlockLinear<Vec, Code4<true>>::linear(args, weight, outputs);
}

void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows) {
  if (table.minimums == nullptr) return BlockLinear<Vec, Code4<false>>::embedding(args, table, rows);
  BlockLinear<Vec, Code4<true>>::embedding(args, table, rows);
}

}  // namespace shardloom::avx2
