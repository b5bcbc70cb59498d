#include "activation_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void silu_mul(const SiluMulArgs& args, Range rows) { Activation<Vec>::run(args, rows); }

}  // namespace shardloom::avx2
