#include "linear_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void linear(const LinearArgs& args, Range outputs) { Linear<Vec>::run(args, outputs); }

}  // namespace shardloom::avx512
