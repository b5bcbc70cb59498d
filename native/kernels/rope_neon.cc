#include "rope_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void rope(const RopeArgs& args, Range rows) { Rope<Vec>::run(args, rows); }

}  // namespace shardloom::neon
