#include "flush_x86.h"
#include "linear_bf16_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512bf16 {
namespace {

// vdpbf16ps adds the second product of a pair, then the first, each with one rounding to nearest, whatever the mode.
struct Dot {
  static avx512::Vec add(avx512::Vec sums, avx512::Vec a, avx512::Vec b) {
    return {_mm512_dpbf16_ps(sums.v, pairs_of(a), pairs_of(b))};
  }
  static __m512bh pairs_of(avx512::Vec vector) { return reinterpret_cast<__m512bh>(vector.v); }
};

// Not part of its caller: arithmetic must not be moved out of the mode.
__attribute__((noinline)) void run(const Bf16LinearArgs& args, Range outputs) {
  Bf16Linear<Pairs<avx512::Vec, Dot>>::run(args, outputs);
}

}  // namespace

void linear_bf16(const Bf16LinearArgs& args, Range outputs) {
  const SubnormalsAreZero mode;
  run(args, outputs);
}

}  // namespace shardloom::avx512bf16
