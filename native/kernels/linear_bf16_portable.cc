#include <cmath>

#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

constexpr int kLanes = 16;
constexpr std::int64_t kChunkPairs = 1024;

// Results below the smallest normal number are zeros of their sign, and so are subnormal operands. A result counts as
// it is after rounding to 24 bits.
float flushed(double value) {
  constexpr double kLeast = 0x1.ffffffp-127;
  return std::fabs(value) < kLeast ? std::copysign(0.0f, static_cast<float>(value)) : static_cast<float>(value);
}

float operand(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }
float operand(bf16 value) { return operand(to_float(value)); }

float add(float a, float b) { return flushed(static_cast<double>(operand(a)) + operand(b)); }

// Rounds once: a product of bf16 has 16 bits, so where its sum with 24 bits does not fit a double, no part of it is near
// enough to the middle between two floats for the first rounding to matter.
float multiply_add(bf16 x, bf16 weight, float sum) {
  return flushed(static_cast<double>(operand(x)) * operand(weight) + operand(sum));
}

// The sum of a chunk: each lane adds up every 16th pair, then halves are folded together.
float dot(const bf16* x, const bf16* weight, std::int64_t pairs) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < pairs; i++) {
    float& lane = lanes[i % kLanes];
    lane = multiply_add(x[2 * i + 1], weight[2 * i + 1], lane);
    lane = multiply_add(x[2 * i], weight[2 * i], lane);
  }
  // The last vector is filled up with zeros, which make -0 to 0.
  for (std::int64_t i = pairs % kLanes; pairs % kLanes != 0 && i < kLanes; i++) lanes[i] = add(lanes[i], 0.0f);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] = add(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

}  // namespace

void linear_bf16(const Bf16LinearArgs& args, Range outputs) {
  for (std::int64_t n = outputs.begin; n < outputs.end; n++) {
    for (std::int64_t m = 0; m < args.rows; m++) {
      const bf16* x = args.x + m * args.x_stride;
      const bf16* weight = args.weight + n * args.inputs;
      float sum = 0;
      for (std::int64_t k = 0; k < args.inputs; k += 2 * kChunkPairs) {
        const std::int64_t rest = (args.inputs - k) / 2;
        const float chunk = dot(x + k, weight + k, rest < kChunkPairs ? rest : kChunkPairs);
        sum = k == 0 ? chunk : add(sum, chunk);
      }
      args.out[m * args.out_stride + n] = args.bias == nullptr ? sum : add(sum, args.bias[n]);
    }
  }
}

}  // namespace shardloom::portable
