// Rounding of activations to blocks of whole numbers on AVX-512.
#include <immintrin.h>

#include <cmath>

#include "arranged_layout.h"
#include "variants.h"

namespace shardloom::avx512 {
namespace {

constexpr int kLanes = 16;
constexpr int kMostVectors = 4;
constexpr std::int32_t kInfinityBits = 0x7f800000;

template <class Code>
void store_codes(__m512i codes, Code* to) {
  if constexpr (sizeof(Code) == 2) {
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(order, codes)));
  } else {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(codes));
  }
}

// Magnitudes compare like their bits, and those of NaN and infinity are the largest.
template <int kVectors>
std::int32_t largest_bits(const __m512 (&x)[kVectors]) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_and_si512(_mm512_castps_si512(x[0]), magnitude);
  for (int i = 1; i < kVectors; i++) {
    largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(x[i]), magnitude));
  }
  return _mm512_reduce_max_epi32(largest);
}

template <class Code, int kVectors>
void quantize_block(const QuantizeArgs& args, const float* from, Code* codes, std::int64_t at) {
  __m512 x[kVectors];
  for (int i = 0; i < kVectors; i++) x[i] = _mm512_loadu_ps(from + i * kLanes);
  const std::int32_t bits = largest_bits(x);
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  const float most = static_cast<float>(args.limit);
  float step = 0.0f;
  std::int32_t sum = 0;
  if (bits >= kInfinityBits || largest < kLeastMagnitude) {
    if (bits >= kInfinityBits) step = NAN;
    for (int i = 0; i < kVectors; i++) store_codes(_mm512_setzero_si512(), codes + i * kLanes);
  } else {
    step = largest / most;
    const __m512 inverse = _mm512_set1_ps(most / largest);
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < kVectors; i++) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
      store_codes(rounded, codes + i * kLanes);
      sums = _mm512_add_epi32(sums, rounded);
    }
    sum = _mm512_reduce_add_epi32(sums);
  }
  args.out.scales[at] = step * args.factor;
  args.out.sums[at] = static_cast<float>(sum) * step;
  if constexpr (sizeof(Code) == 1) args.out.starts[at] = -128 * sum;
}

template <class Code, int kVectors>
void quantize_rows(const QuantizeArgs& args, Range rows) {
  constexpr std::int64_t kBlock = kVectors * kLanes;
  for (std::int64_t row = rows.begin; row < rows.end; row++) {
    const float* x = args.x + row * args.x_stride;
    Code* codes = reinterpret_cast<Code*>(static_cast<char*>(args.out.codes) + row * args.out.code_stride);
    for (std::int64_t block = 0; block < args.out.blocks; block++) {
      quantize_block<Code, kVectors>(args, x + block * kBlock, codes + block * kBlock, row * args.out.blocks + block);
    }
  }
}

template <class Code>
void quantize(const QuantizeArgs& args, Range rows) {
  if (args.out.block == kMostVectors * kLanes) return quantize_rows<Code, kMostVectors>(args, rows);
  if (args.out.block == 2 * kLanes) return quantize_rows<Code, 2>(args, rows);
  quantize_rows<Code, 1>(args, rows);
}

}  // namespace

void quantize_int16(const QuantizeArgs& args, Range rows) { quantize<std::int16_t>(args, rows); }

void quantize_int8(const QuantizeArgs& args, Range rows) { quantize<std::int8_t>(args, rows); }

}  // namespace shardloom::avx512
