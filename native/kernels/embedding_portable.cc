// Embedding lookup and row gathering in plain C++.
#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

template <class T>
void run(const EmbeddingArgs& args, Range rows) {
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    float* out = args.out + m * args.out_stride;
    const std::int64_t index = args.ids[m] - args.first_id;
    const bool inside = index >= 0 && index < args.id_count;
    const T* row = static_cast<const T*>(args.table) + (inside ? index * args.width : 0);
    for (std::int64_t i = 0; i < args.width; i++) out[i] = inside ? to_float(row[i]) : 0.0f;
  }
}

}  // namespace

void embedding(const EmbeddingArgs& args, Range rows) {
  with_float_type(args.table_dtype, [&](auto* type) { run<std::remove_cvref_t<decltype(*type)>>(args, rows); });
}

void gather_rows(const GatherArgs& args, Range rows) {
  for (std::int64_t i = rows.begin; i < rows.end; i++) {
    const std::byte* from = args.source + args.indices[i] * args.row_bytes;
    std::memcpy(args.out + i * args.row_bytes, from, static_cast<std::size_t>(args.row_bytes));
  }
}

}  // namespace shardloom::portable
