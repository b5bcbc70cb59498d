#include "embedding_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {

void embedding(const EmbeddingArgs& args, Range rows) { Embedding<Vec>::run(args, rows); }

}  // namespace shardloom::neon
