// Eight floats in an AVX register. Include only in files compiled for AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "unroll.h"

namespace shardloom::avx2 {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  // Registers that a kernel may plan with.
  static constexpr int kRegisters = 16;

  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set(float value) { return {_mm256_set1_ps(value)}; }
  // 0, 1, 2, ...
  static Vec iota() { return {_mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0)}; }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const bf16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Vec load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
  static Vec load(const std::int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }

  // The first `count` (0 to kLanes) elements, zeros after them; nothing beyond them is read.
  static Vec load_first(const float* p, std::int64_t count) { return {_mm256_maskload_ps(p, first(count))}; }
  static Vec load_first(const bf16* p, std::int64_t count) { return widen_bf16(load_first_16bit(p, count)); }
  static Vec load_first(const f16* p, std::int64_t count) { return {_mm256_cvtph_ps(load_first_16bit(p, count))}; }
  static Vec load_first(const std::int8_t* p, std::int64_t count) {
    std::int8_t values[kLanes] = {};
    for (std::int64_t i = 0; i < count; i++) values[i] = p[i];
    return load(values);
  }

  // The bits of 2 * kLanes bf16, or of the first `count` of them, as kLanes pairs.
  static Vec load_pairs(const bf16* p) { return {_mm256_loadu_ps(reinterpret_cast<const float*>(p))}; }
  static Vec load_first_pairs(const bf16* p, std::int64_t count) {
    bf16 values[2 * kLanes] = {};
    for (std::int64_t i = 0; i < count; i++) values[i] = p[i];
    return load_pairs(values);
  }
  // The values of the first and of the second bf16 of each pair.
  static Vec first_of_pairs(Vec pairs) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs.v), 16))};
  }
  static Vec second_of_pairs(Vec pairs) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs.v), high))};
  }

  static float widened(f16 value) { return _cvtsh_ss(value.bits); }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16()); }
  void store(f16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_f16()); }
  // Numbers from -128 to 127, to the nearest, ties to even.
  void store(std::int8_t* p) const {
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  void store_first(float* p, std::int64_t count) const { _mm256_maskstore_ps(p, first(count), v); }
  void store_first(bf16* p, std::int64_t count) const { store_first_16bit(p, narrow_bf16(), count); }
  void store_first(f16* p, std::int64_t count) const { store_first_16bit(p, narrow_f16(), count); }

  // The same value, pinned to a register: a compiler may otherwise load it again for every use.
  static Vec kept(Vec a) {
    __asm__("" : "+x"(a.v));
    return a;
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  // a * b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // b where either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
  static Vec copy_sign(Vec magnitude, Vec sign) {
    return {_mm256_or_ps(magnitude.v, _mm256_and_ps(sign.v, _mm256_set1_ps(-0.0f)))};
  }
  static Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // 2^n for whole n in [-126, 127].
  static Vec exp2_whole(Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
  }
  // a < b ? x : y; y where either is NaN.
  static Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
  }
  // Whether any lane of a is less than that of b; NaN is less than nothing.
  static bool any_less(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)) != 0; }
  // Bit i is set where lane i of a equals that of b.
  static std::uint32_t equal_bits(Vec a, Vec b) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)));
  }

  // Folds halves together: lane i and lane i + 4, then + 2, + 1. sum4 adds in the same order.
  float sum() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float max_lane() const {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  // out[i] = sum of the i-th vector, bit for bit what sum() gives.
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const __m256 ac = _mm256_add_ps(_mm256_permute2f128_ps(a.v, c.v, 0x20), _mm256_permute2f128_ps(a.v, c.v, 0x31));
    const __m256 bd = _mm256_add_ps(_mm256_permute2f128_ps(b.v, d.v, 0x20), _mm256_permute2f128_ps(b.v, d.v, 0x31));
    const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xee));
    const __m128 ab = _mm256_castps256_ps128(two);
    const __m128 cd = _mm256_extractf128_ps(two, 1);
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
  }

  // Lane j of rows[i] and lane i of rows[j] change places.
  static void transpose(Vec (&rows)[kLanes]) {
    __m256 t[kLanes];
    repeat<kLanes / 4>([&](auto quad) {
      constexpr int i = 4 * quad;
      const __m256 ab_low = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
      const __m256 ab_high = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
      const __m256 cd_low = _mm256_unpacklo_ps(rows[i + 2].v, rows[i + 3].v);
      const __m256 cd_high = _mm256_unpackhi_ps(rows[i + 2].v, rows[i + 3].v);
      t[i] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
      t[i + 1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
      t[i + 2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
      t[i + 3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
    });
    // Half h of t[i + k] holds column 4h + k of rows i .. i + 3.
    repeat<4>([&](auto k) {
      rows[k].v = _mm256_permute2f128_ps(t[k], t[k + 4], 0x20);
      rows[k + 4].v = _mm256_permute2f128_ps(t[k], t[k + 4], 0x31);
    });
  }

 private:
  static __m256i first(std::int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  }

  template <class T>
  static __m128i load_first_16bit(const T* p, std::int64_t count) {
    std::uint16_t bits[kLanes] = {};
    for (std::int64_t i = 0; i < count; i++) bits[i] = p[i].bits;
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bits));
  }

  template <class T>
  static void store_first_16bit(T* p, __m128i values, std::int64_t count) {
    std::uint16_t bits[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bits), values);
    for (std::int64_t i = 0; i < count; i++) p[i].bits = bits[i];
  }

  static Vec widen_bf16(__m128i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }

  // Rounds to nearest, ties to even; NaN stays a quiet NaN.
  __m128i narrow_bf16() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }

  __m128i narrow_f16() const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

}  // namespace
}  // namespace shardloom::avx2
