#include "linear_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void linear(const LinearArgs& args, Range outputs) { Linear<Vec>::run(args, outputs); }

}  // namespace shardloom::neon
