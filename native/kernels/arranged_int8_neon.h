// The format of arranged 8-bit codes on NEON (arranged_neon.h).
#pragma once

#include "arranged_neon.h"

namespace shardloom {
namespace {

struct ArrangedInt8Format {
  // Two units of four inputs.
  static constexpr std::int64_t kStepBytes = 2 * kUnitBytes;

  explicit ArrangedInt8Format(const ArrangedInt8&) {}

  __attribute__((always_inline)) void pairs(const std::uint8_t* codes, int v, int16x8_t (&out)[4]) const {
    int8x16_t fours[2];
    bytes(codes, v, fours);
    repeat<2>([&](auto unit) {
      const int16x8_t two = vreinterpretq_s16_s8(fours[unit]);
      out[2 * unit] = vshrq_n_s16(vshlq_n_s16(two, 8), 8);
      out[2 * unit + 1] = vshrq_n_s16(two, 8);
    });
  }

  __attribute__((always_inline)) void bytes(const std::uint8_t* codes, int v, int8x16_t (&out)[2]) const {
    out[0] = vreinterpretq_s8_u8(vld1q_u8(codes + 16 * v));
    out[1] = vreinterpretq_s8_u8(vld1q_u8(codes + kUnitBytes + 16 * v));
  }
};

}  // namespace
}  // namespace shardloom
