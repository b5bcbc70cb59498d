// Arranged 8-bit codes in plain C++.
#include "arranged_portable.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

auto element_of(const ArrangedInt8& weight) {
  return [&weight](const Group& group, std::int64_t row, std::int64_t input, std::int64_t at) {
    const float code = static_cast<float>(int8_at(group.codes, row, input));
    const float scaled = code * value_at(group.scales, group.value_dtype, at) * weight.multiplier;
    return group.minimums == nullptr ? scaled : scaled + value_at(group.minimums, group.value_dtype, at);
  };
}

}  // namespace

void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  arranged_integers<std::int16_t>(args, weight, groups, int8_at);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  arranged_integers<std::int8_t>(args, weight, groups, int8_at);
}

void embedding_arranged_int8(const EmbeddingArgs& args, const ArrangedInt8& table, Range rows) {
  arranged_embedding(args, table, rows, element_of(table));
}

}  // namespace shardloom::portable
