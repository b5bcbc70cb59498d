#include "attention_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void attention(const AttentionArgs& args, Range units) { Attention<Vec>::run(args, units); }

void attention_combine(const AttentionArgs& args, Range rows) { Attention<Vec>::combine(args, rows); }

}  // namespace shardloom::avx512
