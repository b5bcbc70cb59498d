#include "attention_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void attention(const AttentionArgs& args, Range units) { Attention<Vec>::run(args, units); }

void attention_combine(const AttentionArgs& args, Range rows) { Attention<Vec>::combine(args, rows); }

}  // namespace shardloom::neon
