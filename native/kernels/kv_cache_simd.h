// Writing keys and values into the paged cache for any vector type `V`.
#pragma once

#include "numbers.h"

namespace shardloom {
namespace {

template <class V>
struct KvCacheWriter {
  template <class T>
  static void narrow(T* out, const float* source, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) V::load(source + i).store(out + i);
    if (i < count) V::load_first(source + i, count - i).store_first(out + i, count - i);
  }

  static void run(const WriteKvArgs& args, Range rows) {
    with_float_type(args.cache_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      for (std::int64_t m = rows.begin; m < rows.end; m++) {
        const std::int64_t block = args.slots[m] / args.block_size;
        const std::int64_t offset = args.slots[m] % args.block_size;
        const float* key = args.source + m * args.source_stride + args.key_column;
        const float* value = args.source + m * args.source_stride + args.value_column;
        for (std::int64_t h = 0; h < args.kv_heads; h++) {
          const std::int64_t at = (block * args.kv_heads + h) * args.block_size * args.head_size;
          T narrowed[kMaxHeadSize];
          narrow(narrowed, key + h * args.head_size, args.head_size);
          T* column = static_cast<T*>(args.keys) + at + offset;
          for (std::int64_t d = 0; d < args.head_size; d++) column[d * args.block_size] = narrowed[d];
          narrow(static_cast<T*>(args.values) + at + offset * args.head_size, value + h * args.head_size,
                 args.head_size);
        }
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
