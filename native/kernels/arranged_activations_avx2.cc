// Rounding of activations to blocks of whole numbers on AVX2.
#include <immintrin.h>

#include <cmath>

#include "arranged_layout.h"
#include "variants.h"

namespace shardloom::avx2 {
namespace {

constexpr int kLanes = 8;
constexpr int kMostVectors = 8;
constexpr std::int32_t kInfinityBits = 0x7f800000;

void store_codes(__m256i codes, std::int16_t* to) {
  const __m256i ordered = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7));
  const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

void store_codes(__m256i codes, std::int8_t* to) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

std::int32_t largest_lane(__m256i v) {
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
  return _mm_cvtsi128_si32(most);
}

std::int32_t sum_of_lanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

// Magnitudes compare like their bits, and those of NaN and infinity are the largest.
template <int kVectors>
std::int32_t largest_bits(const __m256 (&x)[kVectors]) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (const __m256& v : x) largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v), magnitude));
  return largest_lane(largest);
}

template <class Code, int kVectors>
void quantize_block(const QuantizeArgs& args, const float* from, Code* codes, std::int64_t at) {
  __m256 x[kVectors];
  for (int i = 0; i < kVectors; i++) x[i] = _mm256_loadu_ps(from + i * kLanes);
  const std::int32_t bits = largest_bits(x);
  const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  const float most = static_cast<float>(args.limit);
  float step = 0.0f;
  std::int32_t sum = 0;
  if (bits >= kInfinityBits || largest < kLeastMagnitude) {
    if (bits >= kInfinityBits) step = NAN;
    for (int i = 0; i < kVectors; i++) store_codes(_mm256_setzero_si256(), codes + i * kLanes);
  } else {
    step = largest / most;
    const __m256 inverse = _mm256_set1_ps(most / largest);
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < kVectors; i++) {
      const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse));
      store_codes(rounded, codes + i * kLanes);
      sums = _mm256_add_epi32(sums, rounded);
    }
    sum = sum_of_lanes(sums);
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
  if (args.out.block == 4 * kLanes) return quantize_rows<Code, 4>(args, rows);
  quantize_rows<Code, 2>(args, rows);
}

}  // namespace

void quantize_int16(const QuantizeArgs& args, Range rows) { quantize<std::int16_t>(args, rows); }

void quantize_int8(const QuantizeArgs& args, Range rows) { quantize<std::int8_t>(args, rows); }

}  // namespace shardloom::avx2
