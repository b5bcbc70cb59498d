#include "argmax_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void argmax(const ArgmaxArgs& args, Range rows) { Argmax<Vec>::run(args, rows); }

}  // namespace shardloom::avx2
