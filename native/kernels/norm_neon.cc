#include "norm_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void rms_norm(const NormArgs& args, Range rows) { Norm<Vec>::run<false>(args, rows); }

void add_rms_norm(const NormArgs& args, Range rows) { Norm<Vec>::run<true>(args, rows); }

void head_norm(const HeadNormArgs& args, Range rows) { Norm<Vec>::run_heads(args, rows); }

}  // namespace shardloom::neon
