#include "int8_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void linear_int8(const LinearArgs& args, const Int8Matrix& weight, Range outputs) {
  with_int8_format<Vec>(weight, [&](auto format) { format.linear(args, weight, outputs); });
}

void embedding_int8(const EmbeddingArgs& args, const Int8Matrix& table, Range rows) {
  with_int8_format<Vec>(table, [&](auto format) { format.embedding(args, table, rows); });
}

}  // namespace shardloom::neon
