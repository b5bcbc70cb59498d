// Rounding of activations to blocks of whole numbers on AVX-512.
#include <immintrin.h>

#include "arranged_activations_simd.h"
#include "variants.h"

namespace shardloom::avx512 {
namespace {

struct Lanes {
  static constexpr int kLanes = 16;
  using Floats = __m512;
  using Integers = __m512i;

  static Floats load(const float* x) { return _mm512_loadu_ps(x); }
  static Integers zero() { return _mm512_setzero_si512(); }
  static Integers magnitude_bits(Floats x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  }
  static Integers larger(Integers a, Integers b) { return _mm512_max_epi32(a, b); }
  static Integers add(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
  static Integers round(Floats x, float inverse) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
  }
  static std::int32_t largest_lane(Integers v) { return _mm512_reduce_max_epi32(v); }
  static std::int32_t sum_of_lanes(Integers v) { return _mm512_reduce_add_epi32(v); }

  static void store(Integers codes, std::int16_t* to) {
    const Integers order = _mm512_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(order, codes)));
  }
  static void store(Integers codes, std::int8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(codes));
  }
};

}  // namespace

void quantize_int16(const QuantizeArgs& args, Range rows) {
  ActivationBlocks<Lanes>::quantize<std::int16_t>(args, rows);
}

void quantize_int8(const QuantizeArgs& args, Range rows) { ActivationBlocks<Lanes>::quantize<std::int8_t>(args, rows); }

}  // namespace shardloom::avx512
