#include "flush_x86.h"
#include "linear_bf16_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {
namespace {

// Not part of its caller: arithmetic must not be moved out of the mode.
__attribute__((noinline)) void run(const Bf16LinearArgs& args, Range outputs) {
  Bf16Linear<Pairs<Vec, WidenedDot<Vec>>>::run(args, outputs);
}

}  // namespace

void linear_bf16(const Bf16LinearArgs& args, Range outputs) {
  const SubnormalsAreZero mode;
  run(args, outputs);
}

}  // namespace shardloom::avx2
