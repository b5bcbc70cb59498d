#include "attention_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void attention(const AttentionArgs& args, Range units) { Attention<Vec>::run(args, units); }

}  // namespace shardloom::avx2
