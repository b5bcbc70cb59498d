// Conversions of single 16-bit floats, and the one place that turns a dtype into a C++ type.
//
// Everything has internal linkage: this header is compiled with several instruction sets, and code compiled for one
// must never be linked into another.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace shardloom {
namespace {

inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(std::int8_t value) { return static_cast<float>(value); }

inline float to_float(bf16 value) { return float_of_bits(static_cast<std::uint32_t>(value.bits) << 16); }

inline float to_float(f16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x400u) return float_of_bits(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return float_of_bits(sign | bits_of_float(subnormal));
}

// Element `at` of scales or minimums, which are f32 or f16.
inline float value_at(const void* values, DType dtype, std::int64_t at) {
  return dtype == DType::f16 ? to_float(static_cast<const f16*>(values)[at]) : static_cast<const float*>(values)[at];
}

inline void from_float(float value, float* out) { *out = value; }

// Rounds to nearest, ties to even; NaN stays a quiet NaN.
inline void from_float(float value, bf16* out) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40u;
  out->bits = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

// Rounds to nearest, ties to even; beyond the range, infinity; NaN becomes a quiet NaN.
inline void from_float(float value, f16* out) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // A subnormal is a multiple of 2^-24: adding 0.5 leaves exactly those bits at the end of the significand, rounded.
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  out->bits = static_cast<std::uint16_t>(sign | half);
}

// Calls `work` with a null pointer of the C++ type of a float dtype.
template <class Work>
inline void with_float_type(DType dtype, Work work) {
  switch (dtype) {
    case DType::f32:
      return work(static_cast<const float*>(nullptr));
    case DType::bf16:
      return work(static_cast<const bf16*>(nullptr));
    default:
      return work(static_cast<const f16*>(nullptr));
  }
}

// The same for the element types of a KV cache.
template <class Work>
inline void with_cache_type(DType dtype, Work work) {
  if (dtype == DType::i8) return work(static_cast<const std::int8_t*>(nullptr));
  with_float_type(dtype, work);
}

// How floats become whole numbers, a block of activations or a key or value of the cache: code = x * inverse to the nearest,
// ties to even, and x is about code * step.
struct Rounding {
  float step;
  float inverse;  // 0 where all codes are 0
};

// To codes of at most `limit`. `largest` is the largest magnitude; where NaN or infinity is among them it is not looked at.
// They make a step of NaN, so that whatever is computed with it is NaN as well; what is below kLeastMagnitude counts as zeros.
inline Rounding rounding_of(float largest, bool finite, float limit) {
  if (!finite) return {__builtin_nanf(""), 0.0f};
  if (largest < kLeastMagnitude) return {0.0f, 0.0f};
  return {largest / limit, limit / largest};
}

// The same by a step that is a power of two, the smallest that keeps codes within the limit: what is multiplied with such a
// step is exact wherever it is multiplied. At most one bit of a code is lost by it.
inline Rounding rounding_by_power_of_two(float largest, bool finite, float limit) {
  const Rounding nearest = rounding_of(largest, finite, limit);
  if (nearest.inverse == 0.0f) return nearest;
  std::uint32_t bits;
  std::memcpy(&bits, &nearest.step, sizeof bits);
  // A quotient is no subnormal number here. One that was rounded down to a power of two lets x / step exceed the limit by less
  // than what rounds to a code.
  const std::uint32_t step_bits = (bits + 0x007fffffu) & 0x7f800000u;
  const std::uint32_t inverse_bits = (254u << 23) - step_bits;
  Rounding rounding;
  std::memcpy(&rounding.step, &step_bits, sizeof step_bits);
  std::memcpy(&rounding.inverse, &inverse_bits, sizeof inverse_bits);
  return rounding;
}

// How a level rounds activations to codes of its type: to 16 bits by powers of two.
template <class Code>
inline Rounding rounding_to(float largest, bool finite, float limit) {
  return sizeof(Code) == 2 ? rounding_by_power_of_two(largest, finite, limit) : rounding_of(largest, finite, limit);
}

}  // namespace
}  // namespace shardloom
