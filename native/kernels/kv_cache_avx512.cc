#include "kv_cache_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void write_kv(const WriteKvArgs& args, Range rows) { KvCacheWriter<Vec>::run(args, rows); }

}  // namespace shardloom::avx512
