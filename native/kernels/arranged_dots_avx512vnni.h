// Products of whole numbers with VNNI (arranged_dots_avx512.h says what they have to be). In assembly: of the intrinsics, GCC
// copies every sum of a loop from one register to another and back.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shardloom::avx512vnni {
namespace {

struct Vnni {
  static constexpr int kTileRows = 6;
  // vpdpbusd takes one operand without sign: weights less the least of them. The sum of a block begins with what that one is
  // worth.
  static constexpr bool kUnsigned = true;
  using Bytes = __m512i;

  static Bytes bytes(__m512i weights) { return weights; }

  static __m512i start(const std::int32_t* x_starts, std::int64_t at) { return _mm512_set1_epi32(x_starts[at]); }

  static __m512i pairs(__m512i sum, __m512i weights, __m512i x) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
    return sum;
  }

  static __m512i fours(__m512i sum, const Bytes& weights, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
    return sum;
  }
};

}  // namespace
}  // namespace shardloom::avx512vnni
