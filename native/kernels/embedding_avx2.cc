#include "embedding_simd.h"
#include "variants.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {

void embedding(const EmbeddingArgs& args, Range rows) { Embedding<Vec>::run(args, rows); }

}  // namespace shardloom::avx2
