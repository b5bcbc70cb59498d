// Arranged weights in f32 on NEON. Sixteen bytes of a unit are four inputs of four rows: once they are f32, each register
// holds the inputs of one row.
#include "arranged_floats_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {
namespace {

// The codebook is kept as its four planes of bytes, whose look-ups are put together to floats.
struct Code4Floats {
  static constexpr std::int64_t kUnitInputs = kCode4UnitInputs;

  uint8x16_t planes[4];

  explicit Code4Floats(const ArrangedCode4& weight) {
    for (int b = 0; b < 4; b++) {
      std::uint8_t bytes[16];
      for (int i = 0; i < 16; i++) bytes[i] = static_cast<std::uint8_t>(bits_of_float(weight.codebook[i]) >> (8 * b));
      planes[b] = vld1q_u8(bytes);
    }
  }

  void look_up(uint8x16_t codes, float32x4_t (&out)[4]) const {
    const uint8x16_t plane0 = vqtbl1q_u8(planes[0], codes), plane1 = vqtbl1q_u8(planes[1], codes);
    const uint8x16_t plane2 = vqtbl1q_u8(planes[2], codes), plane3 = vqtbl1q_u8(planes[3], codes);
    const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(plane0, plane1));
    const uint16x8_t low23 = vreinterpretq_u16_u8(vzip1q_u8(plane2, plane3));
    const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(plane0, plane1));
    const uint16x8_t high23 = vreinterpretq_u16_u8(vzip2q_u8(plane2, plane3));
    out[0] = vreinterpretq_f32_u16(vzip1q_u16(low01, low23));
    out[1] = vreinterpretq_f32_u16(vzip2q_u16(low01, low23));
    out[2] = vreinterpretq_f32_u16(vzip1q_u16(high01, high23));
    out[3] = vreinterpretq_f32_u16(vzip2q_u16(high01, high23));
  }

  void decode(const std::uint8_t* unit, const float* scales, const float* minimums, float* out,
              std::int64_t stride) const {
    repeat<4>([&](auto v) {
      const uint8x16_t bytes = vld1q_u8(unit + 16 * v);
      float32x4_t first[4];
      float32x4_t second[4];
      look_up(vandq_u8(bytes, vdupq_n_u8(15)), first);
      look_up(vshrq_n_u8(bytes, 4), second);
      repeat<4>([&](auto r) {
        constexpr int kRow = 4 * v + r;
        Vec row = Vec{first[r], second[r]} * Vec::set(scales[kRow]);
        if (minimums != nullptr) row = row + Vec::set(minimums[kRow]);
        row.store(out + kRow * stride);
      });
    });
  }
};

struct Int8Floats {
  static constexpr std::int64_t kUnitInputs = kInt8UnitInputs;

  float multiplier;

  explicit Int8Floats(const ArrangedInt8& weight) : multiplier(weight.multiplier) {}

  void decode(const std::uint8_t* unit, const float* scales, const float* minimums, float* out,
              std::int64_t stride) const {
    repeat<4>([&](auto v) {
      const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(unit + 16 * v));
      const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
      const int32x4_t codes[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                                  vmovl_high_s16(high)};
      repeat<4>([&](auto r) {
        constexpr int kRow = 4 * v + r;
        float32x4_t row = vmulq_n_f32(vmulq_n_f32(vcvtq_f32_s32(codes[r]), scales[kRow]), multiplier);
        if (minimums != nullptr) row = vaddq_f32(row, vdupq_n_f32(minimums[kRow]));
        vst1q_f32(out + kRow * stride, row);
      });
    });
  }
};

}  // namespace

void arranged_code4_f32(const LinearArgs& args, const ArrangedCode4& weight, Range groups) {
  ArrangedFloats<Vec, Code4Floats>::run(args, weight, groups);
}

void arranged_int8_f32(const LinearArgs& args, const ArrangedInt8& weight, Range groups) {
  ArrangedFloats<Vec, Int8Floats>::run(args, weight, groups);
}

}  // namespace shardloom::neon
