#include "rope_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void rope(const RopeArgs& args, Range rows) { Rope<Vec>::run(args, rows); }

}  // namespace shardloom::avx512
