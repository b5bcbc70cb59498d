#include "flush_x86.h"
#include "linear_bf16_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {
void linear_bf16(const Bf16LinearArgs& args, Range outputs) {
  const SubnormalsAreZero mode;
  linear_bf16_widened<Vec>(args, outputs);
}

}  // namespace shardloom::avx2
