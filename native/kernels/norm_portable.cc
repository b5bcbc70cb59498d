// RMSNorm in plain C++.
#include <cmath>

#include "variants.h"

namespace shardloom::portable {
namespace {

constexpr int kSums = 16;

float sum_of_squares(const float* x, std::int64_t count) {
  float sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int s = 0; s < kSums; s++) sums[s] += x[i + s] * x[i + s];
  }
  for (int s = 0; i + s < count; s++) sums[s] += x[i + s] * x[i + s];
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int s = 0; s < half; s++) sums[s] += sums[s + half];
  }
  return sums[0];
}

void normalize(float* out, const float* x, const float* weight, std::int64_t width, float epsilon) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const float factor = 1.0f / std::sqrt(mean + epsilon);
  for (std::int64_t i = 0; i < width; i++) out[i] = x[i] * factor * weight[i];
}

}  // namespace

void rms_norm(const NormArgs& args, Range rows) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    normalize(args.out + m * args.out_stride, args.x + m * args.x_stride, args.weight, args.width, args.epsilon);
  }
}

void add_rms_norm(const NormArgs& args, Range rows) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    const float* x = args.x + m * args.x_stride;
    float* residual = args.residual + m * args.residual_stride;
    for (std::int64_t i = 0; i < args.width; i++) residual[i] += x[i];
    normalize(args.out + m * args.out_stride, residual, args.weight, args.width, args.epsilon);
  }
}

void head_norm(const HeadNormArgs& args, Range rows) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    for (std::int64_t h = 0; h < args.heads; h++) {
      float* head = args.x + m * args.x_stride + h * args.head_size;
      normalize(head, head, args.weight, args.head_size, args.epsilon);
    }
  }
}

}  // namespace shardloom::portable
