#include "activation_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void silu_mul(const SiluMulArgs& args, Range rows) { Activation<Vec>::run(args, rows); }

}  // namespace shardloom::neon
