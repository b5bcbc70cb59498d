// Rounding of activations to blocks of whole numbers on AVX2.
#include <immintrin.h>

#include "arranged_activations_simd.h"
#include "variants.h"

namespace shardloom::avx2 {
namespace {

struct Lanes {
  static constexpr int kLanes = 8;
  using Floats = __m256;
  using Integers = __m256i;

  static Floats load(const float* x) { return _mm256_loadu_ps(x); }
  static Integers zero() { return _mm256_setzero_si256(); }
  static Integers magnitude_bits(Floats x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
  }
  static Integers larger(Integers a, Integers b) { return _mm256_max_epi32(a, b); }
  static Integers add(Integers a, Integers b) { return _mm256_add_epi32(a, b); }
  static Integers round(Floats x, float inverse) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse)));
  }

  static std::int32_t largest_lane(Integers v) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    return _mm_cvtsi128_si32(most);
  }
  static std::int32_t sum_of_lanes(Integers v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
  }

  static void store(Integers codes, std::int16_t* to) {
    const Integers ordered = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7));
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
  }
  static void store(Integers codes, std::int8_t* to) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
  }
};

}  // namespace

void quantize_int16(const QuantizeArgs& args, Range rows) {
  ActivationBlocks<Lanes>::quantize<std::int16_t>(args, rows);
}

void quantize_int8(const QuantizeArgs& args, Range rows) { ActivationBlocks<Lanes>::quantize<std::int8_t>(args, rows); }

}  // namespace shardloom::avx2
