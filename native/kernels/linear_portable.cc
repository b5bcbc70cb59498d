// Linear layers in plain C++. A weight row is decoded once, a chunk at a time, and used for all rows of x. As in
// linear_simd.h, the order of a sum depends on the number of inputs only.
#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

constexpr std::int64_t kChunk = 1024;
static_assert(kChunk * sizeof(float) <= kWorkspaceBytes);
// Independent sums, which a compiler can keep in vector registers.
constexpr int kSums = 16;

float dot(const float* a, const float* b, std::int64_t count) {
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

template <class T>
void decode(float* out, const T* w, std::int64_t count) {
  for (std::int64_t k = 0; k < count; k++) out[k] = to_float(w[k]);
}

template <class T>
void run(const LinearArgs& args, Range outputs) {
  float* weights = static_cast<float*>(args.workspace);
  for (std::int64_t n = outputs.begin; n < outputs.end; n++) {
    const T* w = static_cast<const T*>(args.weight) + n * args.inputs;
    for (std::int64_t k = 0; k < args.inputs; k += kChunk) {
      const std::int64_t count = args.inputs - k < kChunk ? args.inputs - k : kChunk;
      decode(weights, w + k, count);
      for (std::int64_t m = 0; m < args.rows; m++) {
        const float sum = dot(args.x + m * args.x_stride + k, weights, count);
        float& out = args.out[m * args.out_stride + n];
        out = k == 0 ? sum : out + sum;
      }
    }
    if (args.bias == nullptr) continue;
    for (std::int64_t m = 0; m < args.rows; m++) args.out[m * args.out_stride + n] += args.bias[n];
  }
}

}  // namespace

void linear(const LinearArgs& args, Range outputs) {
  with_float_type(args.weight_dtype, [&](auto* type) { run<std::remove_cvref_t<decltype(*type)>>(args, outputs); });
}

}  // namespace shardloom::portable
