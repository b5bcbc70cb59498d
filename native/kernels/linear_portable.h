// Linear layers in plain C++ for weights of any format. A weight row is decoded once, a chunk at a time, and used for
// all rows of x. As in linear_simd.h, the order of a sum depends on the number of inputs only.
#pragma once

#include "numbers.h"

namespace shardloom::portable {
namespace {

constexpr std::int64_t kChunk = 1024;
static_assert(kChunk * sizeof(float) <= kWorkspaceBytes);
// Independent sums, which a compiler can keep in vector registers.
constexpr int kSums = 16;

inline float dot(const float* a, const float* b, std::int64_t count) {
  float sums[kSums] = {};
  std::int64_t k = 0;
  for (; k + kSums <= count; k += kSums) {
    for (int i = 0; i < kSums; i++) sums[i] += a[k + i] * b[k + i];
  }
  for (int i = 0; k + i < count; i++) sums[i] += a[k + i] * b[k + i];
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) sums[i] += sums[i + half];
  }
  return sums[0];
}

// decode(out, row, input, count) writes elements [input, input + count) of a row of the weight.
template <class Decode>
void linear_of(const LinearArgs& args, Range outputs, Decode decode) {
  float* weights = static_cast<float*>(args.workspace);
  for (std::int64_t n = outputs.begin; n < outputs.end; n++) {
    std::int64_t k = 0;
    do {
      const std::int64_t count = args.inputs - k < kChunk ? args.inputs - k : kChunk;
      decode(weights, n, k, count);
      for (std::int64_t m = 0; m < args.rows; m++) {
        const float sum = dot(args.x + m * args.x_stride + k, weights, count);
        float& out = args.out[m * args.out_stride + n];
        out = k == 0 ? sum : out + sum;
      }
      k += kChunk;
    } while (k < args.inputs);
    if (args.bias == nullptr) continue;
    for (std::int64_t m = 0; m < args.rows; m++) args.out[m * args.out_stride + n] += args.bias[n];
  }
}

template <class Decode>
void embedding_of(const EmbeddingArgs& args, Range rows, Decode decode) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    float* out = args.out + m * args.out_stride;
    const std::int64_t index = args.ids[m] - args.first_id;
    if (index >= 0 && index < args.id_count) {
      decode(out, index, 0, args.width);
    } else {
      std::memset(out, 0, static_cast<std::size_t>(args.width) * sizeof(float));
    }
  }
}

}  // namespace
}  // namespace shardloom::portable
