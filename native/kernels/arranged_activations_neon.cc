// Rounding of activations to blocks of whole numbers on NEON: the operations of arranged_activations_portable.cc.
#include <arm_neon.h>

#include "arranged_layout.h"
#include "numbers.h"
#include "variants.h"

namespace shardloom::neon {
namespace {

// The order of magnitudes is that of their bits, in which infinity and NaN are the largest.
template <class Code>
Rounding rounding_of_block(const float* x, std::int64_t count, std::int32_t limit) {
  uint32x4_t largest_bits = vdupq_n_u32(0);
  for (std::int64_t i = 0; i < count; i += 4) {
    largest_bits = vmaxq_u32(largest_bits, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
  }
  const std::uint32_t bits = vmaxvq_u32(largest_bits);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  return rounding_to<Code>(largest, bits < 0x7f800000u, static_cast<float>(limit));
}

// To the nearest, ties to even.
int32x4_t codes_of(const float* x, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse)); }

int16x8_t eight_codes(const float* x, float inverse) {
  return vcombine_s16(vmovn_s32(codes_of(x, inverse)), vmovn_s32(codes_of(x + 4, inverse)));
}

void store(int16x8_t codes, std::int16_t* out) {
  // Two bytes each of the codes in kPairOrder.
  constexpr std::uint8_t kOrder[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
  vst1q_s16(out, vreinterpretq_s16_s8(vqtbl1q_s8(vreinterpretq_s8_s16(codes), vld1q_u8(kOrder))));
}

void store(int16x8_t codes, std::int8_t* out) { vst1_s8(out, vmovn_s16(codes)); }

template <class Code>
void quantize_block(const QuantizeArgs& args, std::int64_t row, std::int64_t block) {
  const QuantizedRows& out = args.out;
  const float* x = args.x + row * args.x_stride + block * out.block;
  Code* codes = reinterpret_cast<Code*>(static_cast<char*>(out.codes) + row * out.code_stride) + block * out.block;
  const auto [step, inverse] = rounding_of_block<Code>(x, out.block, args.limit);
  int32x4_t sums = vdupq_n_s32(0);
  for (std::int64_t i = 0; i < out.block; i += 8) {
    const int16x8_t eight = inverse == 0.0f ? vdupq_n_s16(0) : eight_codes(x + i, inverse);
    sums = vpadalq_s16(sums, eight);
    store(eight, codes + i);
  }
  const std::int32_t sum = vaddvq_s32(sums);
  const std::int64_t at = row * out.blocks + block;
  out.scales[at] = step * args.factor;
  out.sums[at] = static_cast<float>(sum) * step;
  out.starts[at] = args.offset * sum;
}

template <class Code>
void quantize(const QuantizeArgs& args, Range rows) {
  for (std::int64_t row = rows.begin; row < rows.end; row++) {
    for (std::int64_t block = 0; block < args.out.blocks; block++) quantize_block<Code>(args, row, block);
  }
}

}  // namespace

void quantize_int16(const QuantizeArgs& args, Range rows) { quantize<std::int16_t>(args, rows); }

void quantize_int8(const QuantizeArgs& args, Range rows) { quantize<std::int8_t>(args, rows); }

}  // namespace shardloom::neon
