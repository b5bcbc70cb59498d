// Writing keys and values into the paged cache in plain C++.
#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

template <class T>
void run(const WriteKvArgs& args, Range rows) {
  T* keys = static_cast<T*>(args.keys);
  T* values = static_cast<T*>(args.values);
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    const std::int64_t block = args.slots[m] / args.block_size;
    const std::int64_t offset = args.slots[m] % args.block_size;
    const float* source = args.source + m * args.source_stride;
    for (std::int64_t h = 0; h < args.kv_heads; h++) {
      const std::int64_t at = (block * args.kv_heads + h) * args.block_size * args.head_size;
      for (std::int64_t d = 0; d < args.head_size; d++) {
        from_float(source[args.key_column + h * args.head_size + d], keys + at + d * args.block_size + offset);
        from_float(source[args.value_column + h * args.head_size + d], values + at + offset * args.head_size + d);
      }
    }
  }
}

}  // namespace

void write_kv(const WriteKvArgs& args, Range rows) {
  with_float_type(args.cache_dtype, [&](auto* type) { run<std::remove_cvref_t<decltype(*type)>>(args, rows); });
}

}  // namespace shardloom::portable
