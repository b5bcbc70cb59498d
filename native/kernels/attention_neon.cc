#include "attention_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void attention(const AttentionArgs& args, Range units) { Attention<Vec>::run(args, units); }

}  // namespace shardloom::neon
