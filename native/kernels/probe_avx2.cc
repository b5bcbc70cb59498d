#include <immintrin.h>

#include "probe.h"
#include "unroll.h"

namespace shardloom::avx2 {
namespace {

// Enough independent sums for two units with a latency of five cycles; with two operands they fit the registers.
constexpr int kSums = 12;
constexpr std::size_t kAheadBytes = 4096;

std::uint64_t read(const std::byte* data, std::size_t bytes) {
  __m256i sums[4] = {};
  for (const std::byte* at = data; at < data + bytes; at += 128) {
    repeat<2>([&](auto i) { _mm_prefetch(reinterpret_cast<const char*>(at + kAheadBytes + 64 * i), _MM_HINT_T0); });
    repeat<4>([&](auto i) {
      sums[i] = _mm256_or_si256(sums[i], _mm256_load_si256(reinterpret_cast<const __m256i*>(at) + i));
    });
  }
  const __m256i all = _mm256_or_si256(_mm256_or_si256(sums[0], sums[1]), _mm256_or_si256(sums[2], sums[3]));
  return static_cast<std::uint64_t>(_mm256_movemask_epi8(all));
}

double multiply_add(std::int64_t rounds, float* sink) {
  __m256 sums[kSums];
  const __m256 half = _mm256_set1_ps(0.5f);
  const __m256 one = _mm256_set1_ps(1.0f);
  // Each sum starts elsewhere: a compiler that finds equal ones makes one of them.
  repeat<kSums>([&](auto i) { sums[i] = _mm256_set1_ps(static_cast<float>(i)); });
  for (std::int64_t round = 0; round < rounds; round++) {
    repeat<kSums>([&](auto i) { sums[i] = _mm256_fmadd_ps(sums[i], half, one); });
  }
  repeat<kSums>([&](auto i) { *sink += _mm256_cvtss_f32(sums[i]); });
  return 2.0 * 8 * kSums * static_cast<double>(rounds);
}

// maddubs sums pairs in int16, madd with ones sums them in int32.
double dot_int8(std::int64_t rounds, std::int32_t* sink) {
  constexpr int kDots = 8;
  __m256i sums[kDots];
  __m256i codes[kDots];
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i x = _mm256_set1_epi8(3);
  repeat<kDots>([&](auto i) {
    sums[i] = _mm256_setzero_si256();
    codes[i] = _mm256_set1_epi8(static_cast<char>(i));
  });
  for (std::int64_t round = 0; round < rounds; round++) {
    // Products that the compiler cannot take out of the loop.
    __asm__ volatile("" : "+x"(x));
    repeat<kDots>([&](auto i) {
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, codes[i]), ones));
    });
  }
  repeat<kDots>([&](auto i) { *sink ^= _mm256_extract_epi32(sums[i], 0); });
  return 2.0 * 32 * kDots * static_cast<double>(rounds);
}

}  // namespace

constexpr ProbeTable kProbe = {"avx2", read, multiply_add, dot_int8, nullptr};

}  // namespace shardloom::avx2
