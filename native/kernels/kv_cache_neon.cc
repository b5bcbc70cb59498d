#include "kv_cache_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void write_kv(const WriteKvArgs& args, Range rows) { KvCacheWriter<Vec>::run(args, rows); }

}  // namespace shardloom::neon
