// 8-bit codes with a scale a block or a row, for any vector type `V`. See block_linear_simd.h.
#pragma once

#include "block_linear_simd.h"

namespace shardloom {
namespace {

// kPlain: a multiplier of 1 and no minimums.
template <class V, bool kPlain>
struct Int8 {
  using Matrix = Int8Matrix;
  using Code = std::int8_t;
  struct Scale {
    V scale;
    V minimum;
  };

  static constexpr int kStep = 16;
  static constexpr int kCodesPerByte = 1;
  static constexpr bool kArranged = false;
  static constexpr bool kAnyInputs = true;
  template <int M>
  static constexpr int streams() {
    return M == 1 ? 8 : 4;
  }

  V multiplier;

  explicit Int8(const Int8Matrix& weight) : multiplier(V::set(weight.multiplier)) {}

  Scale scale(float scale, float minimum) const { return {V::set(scale), V::set(minimum)}; }

  template <int kInputs>
  void decode(const std::int8_t* codes, const Scale& scale, V (&out)[kInputs / V::kLanes]) const {
    for (int i = 0; i < kInputs / V::kLanes; i++) out[i] = apply(V::load(codes + i * V::kLanes), scale);
  }

  // The first `count` elements, zeros after them; no code beyond them is read.
  V decode_first(const std::int8_t* codes, const Scale& scale, std::int64_t count) const {
    std::int8_t first[V::kLanes] = {};
    std::memcpy(first, codes, static_cast<std::size_t>(count));
    float values[V::kLanes];
    apply(V::load(first), scale).store(values);
    return V::load_first(values, count);
  }

  static V arrange(V v) { return v; }
  static V restore(V v) { return v; }

 private:
  V apply(V codes, const Scale& scale) const {
    const V scaled = codes * scale.scale;
    if constexpr (kPlain) return scaled;
    return scaled * multiplier + scale.minimum;
  }
};

template <class V, class Work>
void with_int8_format(const Int8Matrix& weight, Work work) {
  if (weight.minimums == nullptr && weight.multiplier == 1.0f) return work(BlockLinear<V, Int8<V, true>>());
  work(BlockLinear<V, Int8<V, false>>());
}

}  // namespace
}  // namespace shardloom
