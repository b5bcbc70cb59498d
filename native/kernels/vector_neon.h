// Eight floats in two NEON registers. Every Arm64 CPU has what it needs.
//
// Two registers, for a sum in one would wait for its own last addition: the few accumulators of a single row keep twice
// as many under way. Lanes are folded in the order of vector_avx2.h, and tiles are the same, so that both compute the
// same bits.
#pragma once

#include <arm_neon.h>

#include "kernels.h"
#include "unroll.h"

namespace shardloom::neon {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  // Pairs of registers that a kernel may plan with.
  static constexpr int kRegisters = 16;

  float32x4_t low;
  float32x4_t high;

  static Vec zero() { return set(0.0f); }
  static Vec set(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  // 0, 1, 2, ...
  static Vec iota() {
    constexpr float kIndices[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7};
    return load(kIndices);
  }

  static Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static Vec load(const bf16* p) { return widen_bf16(vld1q_u16(&p->bits)); }
  static Vec load(const f16* p) { return widen_f16(vld1q_u16(&p->bits)); }
  static Vec load(const std::int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))};
  }

  // The first `count` (0 to kLanes) elements, zeros after them; nothing beyond them is read.
  static Vec load_first(const float* p, std::int64_t count) {
    if (count < 4) return {load_first4(p, count), vdupq_n_f32(0.0f)};
    return {vld1q_f32(p), load_first4(p + 4, count - 4)};
  }
  static Vec load_first(const bf16* p, std::int64_t count) { return widen_bf16(load_first_16bit(p, count)); }
  static Vec load_first(const f16* p, std::int64_t count) { return widen_f16(load_first_16bit(p, count)); }
  static Vec load_first(const std::int8_t* p, std::int64_t count) {
    std::int8_t values[kLanes] = {};
    for (std::int64_t i = 0; i < count; i++) values[i] = p[i];
    return load(values);
  }

  // The bits of 2 * kLanes bf16, or of the first `count` of them, as kLanes pairs.
  static Vec load_pairs(const bf16* p) {
    return {vreinterpretq_f32_u16(vld1q_u16(&p->bits)), vreinterpretq_f32_u16(vld1q_u16(&p->bits + kLanes))};
  }
  static Vec load_first_pairs(const bf16* p, std::int64_t count) {
    bf16 values[2 * kLanes] = {};
    for (std::int64_t i = 0; i < count; i++) values[i] = p[i];
    return load_pairs(values);
  }
  // The values of the first and of the second bf16 of each pair.
  static Vec first_of_pairs(Vec pairs) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(pairs.low), 16)),
            vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(pairs.high), 16))};
  }
  static Vec second_of_pairs(Vec pairs) {
    const uint32x4_t upper = vdupq_n_u32(0xffff0000u);
    return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs.low), upper)),
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs.high), upper))};
  }

  static float widened(f16 value) { return vgetq_lane_f32(widen_f16(vdupq_n_u16(value.bits)).low, 0); }

  void store(float* p) const {
    vst1q_f32(p, low);
    vst1q_f32(p + 4, high);
  }
  void store(bf16* p) const { vst1q_u16(&p->bits, narrow_bf16()); }
  void store(f16* p) const { vst1q_u16(&p->bits, narrow_f16()); }
  // Numbers from -128 to 127, to the nearest, ties to even.
  void store(std::int8_t* p) const {
    vst1_s8(p, vqmovn_s16(vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(low)), vqmovn_s32(vcvtnq_s32_f32(high)))));
  }
  void store_first(float* p, std::int64_t count) const {
    if (count < 4) return store_first4(p, low, count);
    vst1q_f32(p, low);
    store_first4(p + 4, high, count - 4);
  }
  void store_first(bf16* p, std::int64_t count) const { store_first_16bit(p, narrow_bf16(), count); }
  void store_first(f16* p, std::int64_t count) const { store_first_16bit(p, narrow_f16(), count); }

  // The same value, pinned to registers: a compiler may otherwise load it again for every use.
  static Vec kept(Vec a) {
    __asm__("" : "+w"(a.low), "+w"(a.high));
    return a;
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
  // a * b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
  // b where either is NaN, which NEON's own maximum does not promise.
  static Vec max(Vec a, Vec b) {
    return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
  }
  static Vec abs(Vec a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
  static Vec copy_sign(Vec magnitude, Vec sign) {
    const uint32x4_t bit = vdupq_n_u32(0x80000000u);
    return {vbslq_f32(bit, sign.low, magnitude.low), vbslq_f32(bit, sign.high, magnitude.high)};
  }
  static Vec round(Vec a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
  // 2^n for whole n in [-126, 127].
  static Vec exp2_whole(Vec n) { return {exp2_whole4(n.low), exp2_whole4(n.high)}; }
  // a < b ? x : y; y where either is NaN.
  static Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return {vbslq_f32(vcltq_f32(a.low, b.low), x.low, y.low), vbslq_f32(vcltq_f32(a.high, b.high), x.high, y.high)};
  }
  // Whether any lane of a is less than that of b; NaN is less than nothing.
  static bool any_less(Vec a, Vec b) {
    return vmaxvq_u32(vorrq_u32(vcltq_f32(a.low, b.low), vcltq_f32(a.high, b.high))) != 0;
  }
  // Bit i is set where lane i of a equals that of b.
  static std::uint32_t equal_bits(Vec a, Vec b) {
    constexpr std::uint32_t kBits[kLanes] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint32x4_t first = vandq_u32(vceqq_f32(a.low, b.low), vld1q_u32(kBits));
    const uint32x4_t second = vandq_u32(vceqq_f32(a.high, b.high), vld1q_u32(kBits + 4));
    return vaddvq_u32(vorrq_u32(first, second));
  }

  // Folds halves together: lane i and lane i + 4, then + 2, + 1. sum4 adds in the same order.
  float sum() const {
    const float32x4_t four = vaddq_f32(low, high);
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
  }
  float max_lane() const { return vmaxvq_f32(vmaxq_f32(low, high)); }

  // out[i] = sum of the i-th vector, bit for bit what sum() gives.
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const float32x4_t ab = fold_halves(vaddq_f32(a.low, a.high), vaddq_f32(b.low, b.high));
    const float32x4_t cd = fold_halves(vaddq_f32(c.low, c.high), vaddq_f32(d.low, d.high));
    vst1q_f32(out, vpaddq_f32(ab, cd));
  }

  // Lane j of rows[i] and lane i of rows[j] change places.
  static void transpose(Vec (&rows)[kLanes]) {
    repeat<2>([&](auto half) {
      constexpr int i = 4 * half;
      transpose4(rows[i].low, rows[i + 1].low, rows[i + 2].low, rows[i + 3].low);
      transpose4(rows[i].high, rows[i + 1].high, rows[i + 2].high, rows[i + 3].high);
    });
    repeat<4>([&](auto i) {
      const float32x4_t upper = rows[i].high;
      rows[i].high = rows[i + 4].low;
      rows[i + 4].low = upper;
    });
  }

 private:
  static float32x4_t load_first4(const float* p, std::int64_t count) {
    float32x4_t values = vdupq_n_f32(0.0f);
    if (count > 0) values = vld1q_lane_f32(p, values, 0);
    if (count > 1) values = vld1q_lane_f32(p + 1, values, 1);
    if (count > 2) values = vld1q_lane_f32(p + 2, values, 2);
    if (count > 3) values = vld1q_lane_f32(p + 3, values, 3);
    return values;
  }

  static void store_first4(float* p, float32x4_t values, std::int64_t count) {
    if (count > 0) vst1q_lane_f32(p, values, 0);
    if (count > 1) vst1q_lane_f32(p + 1, values, 1);
    if (count > 2) vst1q_lane_f32(p + 2, values, 2);
    if (count > 3) vst1q_lane_f32(p + 3, values, 3);
  }

  template <class T>
  static uint16x8_t load_first_16bit(const T* p, std::int64_t count) {
    std::uint16_t bits[kLanes] = {};
    for (std::int64_t i = 0; i < count; i++) bits[i] = p[i].bits;
    return vld1q_u16(bits);
  }

  template <class T>
  static void store_first_16bit(T* p, uint16x8_t values, std::int64_t count) {
    std::uint16_t bits[kLanes];
    vst1q_u16(bits, values);
    for (std::int64_t i = 0; i < count; i++) p[i].bits = bits[i];
  }

  static Vec widen_bf16(uint16x8_t bits) {
    const uint16x8_t zeros = vdupq_n_u16(0);
    return {vreinterpretq_f32_u16(vzip1q_u16(zeros, bits)), vreinterpretq_f32_u16(vzip2q_u16(zeros, bits))};
  }

  static Vec widen_f16(uint16x8_t bits) {
    const float16x8_t values = vreinterpretq_f16_u16(bits);
    return {vcvt_f32_f16(vget_low_f16(values)), vcvt_high_f32_f16(values)};
  }

  // Rounds to nearest, ties to even; NaN stays a quiet NaN.
  static uint32x4_t round_bf16(float32x4_t values) {
    const uint32x4_t bits = vreinterpretq_u32_f32(values);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vbslq_u32(vceqq_f32(values, values), rounded, quiet);
  }

  uint16x8_t narrow_bf16() const {
    return vshrn_high_n_u32(vshrn_n_u32(round_bf16(low), 16), round_bf16(high), 16);
  }

  uint16x8_t narrow_f16() const { return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(low), high)); }

  static float32x4_t exp2_whole4(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
  }

  // Lanes 0 + 2 and 1 + 3 of a, then those of b.
  static float32x4_t fold_halves(float32x4_t a, float32x4_t b) {
    const float64x2_t a2 = vreinterpretq_f64_f32(a), b2 = vreinterpretq_f64_f32(b);
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a2, b2)), vreinterpretq_f32_f64(vzip2q_f64(a2, b2)));
  }

  static void transpose4(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
    const float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
    const float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    const float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
    const float64x2_t cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    a = vreinterpretq_f32_f64(vzip1q_f64(ab_even, cd_even));
    b = vreinterpretq_f32_f64(vzip1q_f64(ab_odd, cd_odd));
    c = vreinterpretq_f32_f64(vzip2q_f64(ab_even, cd_even));
    d = vreinterpretq_f32_f64(vzip2q_f64(ab_odd, cd_odd));
  }
};

}  // namespace
}  // namespace shardloom::neon
