// Loops of the probe for NEON: those that all of its extensions have in common.
#pragma once

#include <arm_neon.h>

#include "probe.h"
#include "unroll.h"

namespace shardloom {
namespace {

// Enough independent sums for four units with a latency of four cycles; with operands they fit the registers.
constexpr int kProbeSums = 24;
constexpr std::size_t kProbeAheadBytes = 4096;

inline std::uint64_t probe_read_neon(const std::byte* data, std::size_t bytes) {
  uint8x16_t sums[4] = {vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)};
  for (const std::byte* at = data; at < data + bytes; at += 128) {
    const auto* from = reinterpret_cast<const std::uint8_t*>(at);
    repeat<2>([&](auto i) { __builtin_prefetch(from + kProbeAheadBytes + 64 * i); });
    repeat<8>([&](auto i) { sums[i % 4] = vorrq_u8(sums[i % 4], vld1q_u8(from + 16 * i)); });
  }
  return vmaxvq_u8(vorrq_u8(vorrq_u8(sums[0], sums[1]), vorrq_u8(sums[2], sums[3])));
}

inline double probe_multiply_add_neon(std::int64_t rounds, float* sink) {
  float32x4_t sums[kProbeSums];
  const float32x4_t half = vdupq_n_f32(0.5f);
  const float32x4_t one = vdupq_n_f32(1.0f);
  // Each sum starts elsewhere: a compiler that finds equal ones makes one of them.
  repeat<kProbeSums>([&](auto i) { sums[i] = vdupq_n_f32(static_cast<float>(i)); });
  for (std::int64_t round = 0; round < rounds; round++) {
    repeat<kProbeSums>([&](auto i) { sums[i] = vfmaq_f32(sums[i], half, one); });
  }
  repeat<kProbeSums>([&](auto i) { *sink += vgetq_lane_f32(sums[i], 0); });
  return 2.0 * 4 * kProbeSums * static_cast<double>(rounds);
}

// dot(sum, x, codes) adds `products` products to the lanes of a sum.
template <class Dot>
inline double probe_dot_rounds(std::int64_t rounds, std::int32_t* sink, int products, Dot dot) {
  int32x4_t sums[kProbeSums];
  int8x16_t x = vdupq_n_s8(3);
  const int8x16_t codes = vdupq_n_s8(5);
  repeat<kProbeSums>([&](auto i) { sums[i] = vdupq_n_s32(0); });
  for (std::int64_t round = 0; round < rounds; round++) {
    // Products that the compiler cannot take out of the loop.
    repeat<kProbeSums>([&](auto i) {
      __asm__ volatile("" : "+w"(x));
      sums[i] = dot(sums[i], x, codes);
    });
  }
  repeat<kProbeSums>([&](auto i) { *sink ^= vgetq_lane_s32(sums[i], 0); });
  return 2.0 * products * kProbeSums * static_cast<double>(rounds);
}

}  // namespace
}  // namespace shardloom
