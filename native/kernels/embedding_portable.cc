// Embedding lookup and row gathering in plain C++.
#include "linear_portable.h"
#include "variants.h"

namespace shardloom::portable {

void embedding(const EmbeddingArgs& args, Range rows) {
  with_float_type(args.table_dtype, [&](auto* type) {
    using T = std::remove_cvref_t<decltype(*type)>;
    embedding_of(args, rows, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
      const T* from = static_cast<const T*>(args.table) + row * args.width + input;
      for (std::int64_t k = 0; k < count; k++) out[k] = to_float(from[k]);
    });
  });
}

void gather_rows(const GatherArgs& args, Range rows) {
  for (std::int64_t i = rows.begin; i < rows.end; i++) {
    const std::byte* from = args.source + args.indices[i] * args.row_bytes;
    std::memcpy(args.out + i * args.row_bytes, from, static_cast<std::size_t>(args.row_bytes));
  }
}

}  // namespace shardloom::portable
