// Embedding lookup for any vector type `V`.
#pragma once

#include "numbers.h"

namespace shardloom {
namespace {

template <class V>
struct Embedding {
  template <class T>
  static void row(float* out, const T* table, std::int64_t width) {
    std::int64_t i = 0;
    for (; i + V::kLanes <= width; i += V::kLanes) V::load(table + i).store(out + i);
    if (i < width) V::load_first(table + i, width - i).store_first(out + i, width - i);
  }

  static void run(const EmbeddingArgs& args, Range rows) {
    with_float_type(args.table_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      for (std::int64_t m = rows.begin; m < rows.end; m++) {
        float* out = args.out + m * args.out_stride;
        const std::int64_t index = args.ids[m] - args.first_id;
        if (index >= 0 && index < args.id_count) {
          row(out, static_cast<const T*>(args.table) + index * args.width, args.width);
        } else {
          std::memset(out, 0, static_cast<std::size_t>(args.width) * sizeof(float));
        }
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
