// 4-bit codes on NEON, which looks up bytes: the codebook is kept as its four planes of bytes, whose look-ups are put
// together to floats.
#include "block_linear_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {
namespace {

template <bool kMinimums>
struct Code4 {
  using Matrix = Code4Matrix;
  using Code = std::uint8_t;
  struct Scale {
    float scale;
    float minimum;
  };

  static constexpr int kStep = 16;
  static constexpr int kCodesPerByte = 2;
  static constexpr bool kArranged = false;
  static constexpr bool kAnyInputs = false;
  template <int M>
  static constexpr int streams() {
    return M == 1 ? 4 : 2;
  }

  // Byte b of each of the sixteen entries.
  uint8x16_t planes[4];

  explicit Code4(const Code4Matrix& weight) {
    for (int b = 0; b < 4; b++) {
      std::uint8_t bytes[16];
      for (int i = 0; i < 16; i++) bytes[i] = static_cast<std::uint8_t>(bits_of_float(weight.codebook[i]) >> (8 * b));
      planes[b] = vld1q_u8(bytes);
    }
  }

  Scale scale(float scale, float minimum) const { return {scale, kMinimums ? minimum : 0.0f}; }

  // Codes of even inputs are the high halves of bytes, those of odd inputs the low ones.
  template <int kInputs>
  void decode(const std::uint8_t* codes, const Scale& scale, Vec (&out)[kInputs / Vec::kLanes]) const {
    static_assert(kInputs == 16);
    const uint8x8_t bytes = vld1_u8(codes);
    const uint8x8_t even = vshr_n_u8(bytes, 4);
    const uint8x8_t odd = vand_u8(bytes, vdup_n_u8(15));
    const uint8x16_t indices = vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
    const uint8x16_t plane0 = vqtbl1q_u8(planes[0], indices), plane1 = vqtbl1q_u8(planes[1], indices);
    const uint8x16_t plane2 = vqtbl1q_u8(planes[2], indices), plane3 = vqtbl1q_u8(planes[3], indices);
    const uint16x8_t low01 = vreinterpretq_u16_u8(vzip1q_u8(plane0, plane1));
    const uint16x8_t low23 = vreinterpretq_u16_u8(vzip1q_u8(plane2, plane3));
    const uint16x8_t high01 = vreinterpretq_u16_u8(vzip2q_u8(plane0, plane1));
    const uint16x8_t high23 = vreinterpretq_u16_u8(vzip2q_u8(plane2, plane3));
    out[0] = {apply(vzip1q_u16(low01, low23), scale), apply(vzip2q_u16(low01, low23), scale)};
    out[1] = {apply(vzip1q_u16(high01, high23), scale), apply(vzip2q_u16(high01, high23), scale)};
  }

  static Vec arrange(Vec v) { return v; }
  static Vec restore(Vec v) { return v; }

 private:
  static float32x4_t apply(uint16x8_t entries, const Scale& scale) {
    const float32x4_t scaled = vmulq_n_f32(vreinterpretq_f32_u16(entries), scale.scale);
    return kMinimums ? vaddq_f32(scaled, vdupq_n_f32(scale.minimum)) : scaled;
  }
};

}  // namespace

void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs) {
  if (weight.minimums == nullptr) return BlockLinear<Vec, Code4<false>>::linear(args, weight, outputs);
  BlockLinear<Vec, Code4<true>>::linear(args, weight, outputs);
}

void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows) {
  if (table.minimums == nullptr) return BlockLinear<Vec, Code4<false>>::embedding(args, table, rows);
  BlockLinear<Vec, Code4<true>>::embedding(args, table, rows);
}

}  // namespace shardloom::neon
