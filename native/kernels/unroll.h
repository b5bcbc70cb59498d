// Loops that are unrolled by construction, so that an array indexed by them lives in registers.
#pragma once

#include <type_traits>
#include <utility>

namespace shardloom {
namespace {

template <class Body, int... kIndex>
__attribute__((always_inline)) inline void repeat(Body& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}

// body(0), body(1), ... body(kCount - 1), each with a constant.
template <int kCount, class Body>
__attribute__((always_inline)) inline void repeat(Body body) {
  repeat(body, std::make_integer_sequence<int, kCount>{});
}

}  // namespace
}  // namespace shardloom
