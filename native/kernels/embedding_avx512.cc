#include "embedding_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {

void embedding(const EmbeddingArgs& args, Range rows) { Embedding<Vec>::run(args, rows); }

}  // namespace shardloom::avx512
