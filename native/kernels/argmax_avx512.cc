#include "argmax_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void argmax(const ArgmaxArgs& args, Range rows) { Argmax<Vec>::run(args, rows); }

}  // namespace shardloom::avx512
