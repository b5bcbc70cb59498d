// Writing keys and values into the paged cache for any vector type `V`.
#pragma once

#include "numbers.h"

namespace shardloom {
namespace {

template <class V>
struct KvCacheWriter {
  // Rounds the floats of a key or a value one by one. Writes whole vectors where `kPadded` says that there is room.
  template <bool kPadded, class T>
  static void narrow(const float* source, std::int64_t count, T* out, float*) {
    std::int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) V::load(source + i).store(out + i);
    if (i == count) return;
    if constexpr (kPadded) V::load_first(source + i, count - i).store(out + i);
    else V::load_first(source + i, count - i).store_first(out + i, count - i);
  }

  // Rounds a key or a value to codes, and gives their scale.
  template <bool kPadded>
  static void narrow(const float* source, std::int64_t count, std::int8_t* out, float* scale) {
    std::int8_t codes[kMaxHeadSize];
    std::int8_t* to = kPadded ? out : codes;
    const Rounding by = rounding_of_all(source, count);
    *scale = by.step;
    if (by.inverse == 0.0f) {
      std::memset(to, 0, static_cast<std::size_t>(count));
    } else {
      const V inverse = V::set(by.inverse);
      std::int64_t i = 0;
      for (; i + V::kLanes <= count; i += V::kLanes) (V::load(source + i) * inverse).store(to + i);
      if (i < count) (V::load_first(source + i, count - i) * inverse).store(to + i);
    }
    if constexpr (!kPadded) std::memcpy(out, codes, static_cast<std::size_t>(count));
  }

  static Rounding rounding_of_all(const float* source, std::int64_t count) {
    const V infinity = V::set(__builtin_inff());
    V largest = V::zero();
    V infinite = V::zero();
    const auto add = [&](V x) {
      largest = V::max(V::abs(x), largest);
      infinite = V::where_less(V::abs(x), infinity, infinite, infinity);
    };
    std::int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) add(V::load(source + i));
    if (i < count) add(V::load_first(source + i, count - i));
    return rounding_of(largest.max_lane(), infinite.max_lane() == 0.0f, kKvCodeLimit);
  }

  static void run(const WriteKvArgs& args, Range rows) {
    static_assert(kMaxHeadSize % V::kLanes == 0);
    with_cache_type(args.cache_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      for (std::int64_t m = rows.begin; m < rows.end; m++) {
        const std::int64_t block = args.slots[m] / args.block_size;
        const std::int64_t offset = args.slots[m] % args.block_size;
        const float* key = args.source + m * args.source_stride + args.key_column;
        const float* value = args.source + m * args.source_stride + args.value_column;
        for (std::int64_t h = 0; h < args.kv_heads; h++) {
          const std::int64_t head = block * args.kv_heads + h;
          const std::int64_t at = head * args.block_size * args.head_size;
          float* scale = args.scales == nullptr ? nullptr : args.scales + head * 2 * args.block_size + offset;
          T narrowed[kMaxHeadSize];
          narrow<true>(key + h * args.head_size, args.head_size, narrowed, scale);
          T* column = static_cast<T*>(args.keys) + at + offset;
          for (std::int64_t d = 0; d < args.head_size; d++) column[d * args.block_size] = narrowed[d];
          narrow<false>(value + h * args.head_size, args.head_size,
                        static_cast<T*>(args.values) + at + offset * args.head_size,
                        scale == nullptr ? nullptr : scale + args.block_size);
        }
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
