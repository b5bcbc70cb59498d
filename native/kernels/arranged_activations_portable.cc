// Rounding of activations to blocks of whole numbers, in plain C++: the definition that every other one equals bit for bit.
#include <cmath>

#include "arranged_layout.h"
#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

template <class Code>
Rounding rounding_of_block(const float* x, std::int64_t count, std::int32_t limit) {
  float largest = 0.0f;
  bool finite = true;
  for (std::int64_t i = 0; i < count; i++) {
    finite = finite && std::isfinite(x[i]);
    largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
  }
  return rounding_to<Code>(largest, finite, static_cast<float>(limit));
}

// Adding 1.5 * 2^23 leaves no bits for fractions, rounded to nearest, ties to even.
std::int32_t code_of(float x, float inverse) {
  if (inverse == 0.0f) return 0;
  const float rounded = x * inverse + 12582912.0f;
  return static_cast<std::int32_t>(rounded - 12582912.0f);
}

template <class Code>
void quantize_block(const QuantizeArgs& args, std::int64_t row, std::int64_t block) {
  const QuantizedRows& out = args.out;
  const float* x = args.x + row * args.x_stride + block * out.block;
  Code* codes = reinterpret_cast<Code*>(static_cast<char*>(out.codes) + row * out.code_stride) + block * out.block;
  const auto [step, inverse] = rounding_of_block<Code>(x, out.block, args.limit);
  std::int32_t sum = 0;
  for (std::int64_t i = 0; i < out.block; i++) {
    const std::int64_t input = sizeof(Code) == 2 ? i / 8 * 8 + kPairOrder[i % 8] : i;
    const std::int32_t code = code_of(x[input], inverse);
    codes[i] = static_cast<Code>(code);
    sum += code;
  }
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

}  // namespace shardloom::portable
