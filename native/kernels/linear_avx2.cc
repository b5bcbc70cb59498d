#include "linear_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void linear(const LinearArgs& args, Range outputs) { Linear<Vec>::run(args, outputs); }

}  // namespace shardloom::avx2
