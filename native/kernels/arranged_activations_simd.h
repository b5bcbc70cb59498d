// Rounding of activations to blocks of whole numbers for any vectors of 32-bit lanes: the operations of
// arranged_activations_portable.cc. `V` has
//   kLanes
//   Floats, Integers
//   load(x)                  kLanes floats
//   zero()                   integers
//   magnitude_bits(x)        the bits of |x|, as integers
//   larger(a, b), add(a, b)  of integers
//   round(x, inverse)        x * inverse to the nearest whole number, of two the even one
//   largest_lane(v), sum_of_lanes(v)
//   store(codes, to)         as codes of 16 bits, in kPairOrder, or of 8 bits
#pragma once

#include "arranged_layout.h"
#include "numbers.h"

namespace shardloom {
namespace {

template <class V>
struct ActivationBlocks {
  using Floats = typename V::Floats;
  using Integers = typename V::Integers;

  template <class Code, int kVectors>
  static void quantize_block(const QuantizeArgs& args, const float* from, Code* codes, std::int64_t at) {
    Floats x[kVectors];
    Integers largest_bits = V::zero();
    for (int i = 0; i < kVectors; i++) {
      x[i] = V::load(from + i * V::kLanes);
      largest_bits = V::larger(largest_bits, V::magnitude_bits(x[i]));
    }
    // Magnitudes compare like their bits, and those of NaN and infinity are the largest.
    const std::int32_t bits = V::largest_lane(largest_bits);
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    const Rounding rounding = rounding_to<Code>(largest, bits < kInfinityBits, static_cast<float>(args.limit));
    std::int32_t sum = 0;
    if (rounding.inverse == 0.0f) {
      for (int i = 0; i < kVectors; i++) V::store(V::zero(), codes + i * V::kLanes);
    } else {
      Integers sums = V::zero();
      for (int i = 0; i < kVectors; i++) {
        const Integers rounded = V::round(x[i], rounding.inverse);
        V::store(rounded, codes + i * V::kLanes);
        sums = V::add(sums, rounded);
      }
      sum = V::sum_of_lanes(sums);
    }
    args.out.scales[at] = rounding.step * args.factor;
    args.out.sums[at] = static_cast<float>(sum) * rounding.step;
    args.out.starts[at] = args.offset * sum;
  }

  template <class Code, int kBlock>
  static void quantize_rows(const QuantizeArgs& args, Range rows) {
    for (std::int64_t row = rows.begin; row < rows.end; row++) {
      const float* x = args.x + row * args.x_stride;
      Code* codes = reinterpret_cast<Code*>(static_cast<char*>(args.out.codes) + row * args.out.code_stride);
      for (std::int64_t block = 0; block < args.out.blocks; block++) {
        quantize_block<Code, kBlock / V::kLanes>(args, x + block * kBlock, codes + block * kBlock,
                                                 row * args.out.blocks + block);
      }
    }
  }

  // The blocks that activation_block gives.
  template <class Code>
  static void quantize(const QuantizeArgs& args, Range rows) {
    if (args.out.block == 64) return quantize_rows<Code, 64>(args, rows);
    if (args.out.block == 32) return quantize_rows<Code, 32>(args, rows);
    quantize_rows<Code, 16>(args, rows);
  }

  static constexpr std::int32_t kInfinityBits = 0x7f800000;
};

}  // namespace
}  // namespace shardloom
