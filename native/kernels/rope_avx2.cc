#include "rope_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void rope(const RopeArgs& args, Range rows) { Rope<Vec>::run(args, rows); }

}  // namespace shardloom::avx2
