// Writing keys and values into the paged cache in plain C++.
#include <cmath>

#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

// The floats of a key or a value, rounded one by one.
template <class T>
void narrow(const float* source, std::int64_t count, T* out, std::int64_t step, float*) {
  for (std::int64_t d = 0; d < count; d++) from_float(source[d], out + d * step);
}

// The codes of a key or a value, and their scale.
void narrow(const float* source, std::int64_t count, std::int8_t* out, std::int64_t step, float* scale) {
  float largest = 0.0f;
  bool finite = true;
  for (std::int64_t d = 0; d < count; d++) {
    finite = finite && std::isfinite(source[d]);
    largest = std::fabs(source[d]) > largest ? std::fabs(source[d]) : largest;
  }
  const Rounding by = rounding_of(largest, finite, kKvCodeLimit);
  *scale = by.step;
  for (std::int64_t d = 0; d < count; d++) {
    out[d * step] = by.inverse == 0.0f ? std::int8_t{0} : static_cast<std::int8_t>(std::nearbyint(source[d] * by.inverse));
  }
}

template <class T>
void run(const WriteKvArgs& args, Range rows) {
  T* keys = static_cast<T*>(args.keys);
  T* values = static_cast<T*>(args.values);
  for (std::int64_t m = rows.begin; m < rows.end; m++) {
    const std::int64_t block = args.slots[m] / args.block_size;
    const std::int64_t offset = args.slots[m] % args.block_size;
    const float* source = args.source + m * args.source_stride;
    for (std::int64_t h = 0; h < args.kv_heads; h++) {
      const std::int64_t head = block * args.kv_heads + h;
      const std::int64_t at = head * args.block_size * args.head_size;
      float* scale = args.scales == nullptr ? nullptr : args.scales + head * 2 * args.block_size + offset;
      narrow(source + args.key_column + h * args.head_size, args.head_size, keys + at + offset, args.block_size, scale);
      narrow(source + args.value_column + h * args.head_size, args.head_size, values + at + offset * args.head_size, 1,
             scale == nullptr ? nullptr : scale + args.block_size);
    }
  }
}

}  // namespace

void write_kv(const WriteKvArgs& args, Range rows) {
  with_cache_type(args.cache_dtype, [&](auto* type) { run<std::remove_cvref_t<decltype(*type)>>(args, rows); });
}

}  // namespace shardloom::portable
