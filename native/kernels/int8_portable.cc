// 8-bit codes in plain C++.
#include "linear_portable.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

void decode(float* out, const Int8Matrix& weight, std::int64_t row, std::int64_t input, std::int64_t count) {
  const std::int8_t* codes = weight.codes + row * weight.inputs;
  const std::int64_t first_block = row * (weight.inputs / weight.block_size);
  for (std::int64_t k = input; k < input + count; k++) {
    const std::int64_t block = first_block + k / weight.block_size;
    const float scale = value_at(weight.scales, weight.value_dtype, block);
    const float scaled = static_cast<float>(codes[k]) * scale * weight.multiplier;
    out[k - input] = weight.minimums == nullptr ? scaled : scaled + value_at(weight.minimums, weight.value_dtype, block);
  }
}

}  // namespace

void linear_int8(const LinearArgs& args, const Int8Matrix& weight, Range outputs) {
  linear_of(args, outputs, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
    decode(out, weight, row, input, count);
  });
}

void embedding_int8(const EmbeddingArgs& args, const Int8Matrix& table, Range rows) {
  embedding_of(args, rows, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
    decode(out, table, row, input, count);
  });
}

}  // namespace shardloom::portable
