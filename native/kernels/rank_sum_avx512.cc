#include "rank_sum_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void sum_ranks(const RankSumArgs& args, Range elements) { RankSum<Vec>::run(args, elements); }

void narrow_bf16(bf16* out, const float* x, Range elements) { RankSum<Vec>::narrow(out, x, elements); }

}  // namespace shardloom::avx512
