#include "attention_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void attention(const AttentionArgs& args, Range units) { Attention<Vec>::run(args, units); }

}  // namespace shardloom::avx512
