#include "activation_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void silu_mul(const SiluMulArgs& args, Range rows) { Activation<Vec>::run(args, rows); }

}  // namespace shardloom::avx512
