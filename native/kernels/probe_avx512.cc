#include <immintrin.h>

#include "probe.h"
#include "unroll.h"

namespace shardloom::avx512 {
namespace {

constexpr int kSums = 16;
constexpr std::size_t kAheadBytes = 4096;

std::uint64_t read(const std::byte* data, std::size_t bytes) {
  __m512i sums[4] = {};
  for (const std::byte* at = data; at < data + bytes; at += 256) {
    repeat<4>([&](auto i) { _mm_prefetch(reinterpret_cast<const char*>(at + kAheadBytes + 64 * i), _MM_HINT_T0); });
    repeat<4>([&](auto i) { sums[i] = _mm512_or_si512(sums[i], _mm512_load_si512(at + 64 * i)); });
  }
  const __m512i all = _mm512_or_si512(_mm512_or_si512(sums[0], sums[1]), _mm512_or_si512(sums[2], sums[3]));
  return _mm512_movepi8_mask(all);
}

double multiply_add(std::int64_t rounds, float* sink) {
  __m512 sums[kSums];
  const __m512 half = _mm512_set1_ps(0.5f);
  const __m512 one = _mm512_set1_ps(1.0f);
  // Each sum starts elsewhere: a compiler that finds equal ones makes one of them.
  repeat<kSums>([&](auto i) { sums[i] = _mm512_set1_ps(static_cast<float>(i)); });
  for (std::int64_t round = 0; round < rounds; round++) {
    repeat<kSums>([&](auto i) { sums[i] = _mm512_fmadd_ps(sums[i], half, one); });
  }
  repeat<kSums>([&](auto i) { *sink += _mm512_cvtss_f32(sums[i]); });
  return 2.0 * 16 * kSums * static_cast<double>(rounds);
}

template <class Dot>
__attribute__((always_inline)) inline double dot_rounds(std::int64_t rounds, std::int32_t* sink, Dot dot) {
  __m512i sums[kSums];
  __m512i x = _mm512_set1_epi8(3);
  const __m512i codes = _mm512_set1_epi8(5);
  repeat<kSums>([&](auto i) { sums[i] = _mm512_setzero_si512(); });
  for (std::int64_t round = 0; round < rounds; round++) {
    // Products that the compiler cannot take out of the loop.
    repeat<kSums>([&](auto i) {
      __asm__ volatile("" : "+v"(x));
      sums[i] = dot(sums[i], x, codes);
    });
  }
  repeat<kSums>([&](auto i) { *sink ^= _mm512_cvtsi512_si32(sums[i]); });
  return 2.0 * 64 * kSums * static_cast<double>(rounds);
}

double dot_int8(std::int64_t rounds, std::int32_t* sink) {
  const __m512i ones = _mm512_set1_epi16(1);
  return dot_rounds(rounds, sink, [&](__m512i sum, __m512i x, __m512i codes) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(x, codes), ones));
  });
}

// One instruction of VNNI, named in assembly because this file is not compiled for it.
double dot_int8_vnni(std::int64_t rounds, std::int32_t* sink) {
  return dot_rounds(rounds, sink, [](__m512i sum, __m512i x, __m512i codes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(codes));
    return sum;
  });
}

double dot_bf16(std::int64_t rounds, float* sink) {
  __m512 sums[kSums];
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  repeat<kSums>([&](auto i) { sums[i] = _mm512_setzero_ps(); });
  for (std::int64_t round = 0; round < rounds; round++) {
    repeat<kSums>([&](auto i) { __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(sums[i]) : "v"(ones)); });
  }
  repeat<kSums>([&](auto i) { *sink += _mm512_cvtss_f32(sums[i]); });
  return 2.0 * 32 * kSums * static_cast<double>(rounds);
}

}  // namespace

constexpr ProbeTable kProbe = {"avx512", read, multiply_add, dot_int8, nullptr};
constexpr ProbeTable kProbeVnni = {"avx512vnni", read, multiply_add, dot_int8_vnni, nullptr};
constexpr ProbeTable kProbeBf16 = {"avx512bf16", read, multiply_add, dot_int8_vnni, dot_bf16};

}  // namespace shardloom::avx512
