// The format of arranged 4-bit codes on NEON (arranged_neon.h): codes are looked up as bytes.
#pragma once

#include "arranged_neon.h"

namespace shardloom {
namespace {

// The inputs 0 to 3 of a step are the low halves of bytes, 4 to 7 the high ones.
struct ArrangedCode4Format {
  static constexpr std::int64_t kStepBytes = kUnitBytes;

  uint8x16_t low_bytes;
  uint8x16_t high_bytes;
  int8x16_t codebook8;

  explicit ArrangedCode4Format(const ArrangedCode4& weight) : codebook8(vld1q_s8(weight.codebook8)) {
    const uint8x16_t first = vreinterpretq_u8_s16(vld1q_s16(weight.codebook16));
    const uint8x16_t second = vreinterpretq_u8_s16(vld1q_s16(weight.codebook16 + 8));
    low_bytes = vuzp1q_u8(first, second);
    high_bytes = vuzp2q_u8(first, second);
  }

  // Even bytes of two look-ups, put together, are a number each; then the odd ones.
  __attribute__((always_inline)) void pairs(const std::uint8_t* codes, int v, int16x8_t (&out)[4]) const {
    const uint8x16_t bytes = vld1q_u8(codes + 16 * v);
    const uint8x16_t halves[2] = {vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8(bytes, 4)};
    repeat<2>([&](auto half) {
      const uint8x16_t low = vqtbl1q_u8(low_bytes, halves[half]), high = vqtbl1q_u8(high_bytes, halves[half]);
      out[2 * half] = vreinterpretq_s16_u8(vtrn1q_u8(low, high));
      out[2 * half + 1] = vreinterpretq_s16_u8(vtrn2q_u8(low, high));
    });
  }

  __attribute__((always_inline)) void bytes(const std::uint8_t* codes, int v, int8x16_t (&out)[2]) const {
    const uint8x16_t bytes = vld1q_u8(codes + 16 * v);
    out[0] = vqtbl1q_s8(codebook8, vandq_u8(bytes, vdupq_n_u8(15)));
    out[1] = vqtbl1q_s8(codebook8, vshrq_n_u8(bytes, 4));
  }
};

}  // namespace
}  // namespace shardloom
