// Arranged 4-bit codes in plain C++.
#include "arranged_portable.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

auto element_of(const ArrangedCode4& weight) {
  return [&weight](const Group& group, std::int64_t row, std::int64_t input, std::int64_t at) {
    const float scale = value_at(group.scales, group.value_dtype, at);
    const float scaled = weight.codebook[code4_at(group.codes, row, input)] * scale;
    return group.minimums == nullptr ? scaled : scaled + value_at(group.minimums, group.value_dtype, at);
  };
}

}  // namespace

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  arranged_integers<std::int16_t>(args, weight, groups, [&](const std::uint8_t* codes, int row, std::int64_t input) {
    return weight.codebook16[code4_at(codes, row, input)];
  });
}

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  arranged_integers<std::int8_t>(args, weight, groups, [&](const std::uint8_t* codes, int row, std::int64_t input) {
    return weight.codebook8[code4_at(codes, row, input)];
  });
}

void embedding_arranged_code4(const EmbeddingArgs& args, const ArrangedCode4& table, Range rows) {
  arranged_embedding(args, table, rows, element_of(table));
}

}  // namespace shardloom::portable
