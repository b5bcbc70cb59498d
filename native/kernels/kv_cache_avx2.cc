#include "kv_cache_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void write_kv(const WriteKvArgs& args, Range rows) { KvCacheWriter<Vec>::run(args, rows); }

}  // namespace shardloom::avx2
