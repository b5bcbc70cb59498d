// 4-bit codes in plain C++.
#include "linear_portable.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

void decode(float* out, const Code4Matrix& weight, std::int64_t row, std::int64_t input, std::int64_t count) {
  const std::uint8_t* codes = weight.codes + row * (weight.inputs / 2);
  const std::int64_t first_block = row * (weight.inputs / weight.block_size);
  for (std::int64_t k = input; k < input + count; k++) {
    const std::int64_t block = first_block + k / weight.block_size;
    const int code = k % 2 == 0 ? codes[k / 2] >> 4 : codes[k / 2] & 15;
    const float scaled = weight.codebook[code] * value_at(weight.scales, weight.value_dtype, block);
    out[k - input] = weight.minimums == nullptr ? scaled : scaled + value_at(weight.minimums, weight.value_dtype, block);
  }
}

}  // namespace

void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs) {
  linear_of(args, outputs, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
    decode(out, weight, row, input, count);
  });
}

void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows) {
  embedding_of(args, rows, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
    decode(out, table, row, input, count);
  });
}

}  // namespace shardloom::portable
