#include "argmax_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void argmax(const ArgmaxArgs& args, Range rows) { Argmax<Vec>::run(args, rows); }

}  // namespace shardloom::neon
