// Sixteen floats in an AVX-512 register. Include only in files compiled for AVX-512 (F, BW, DQ, VL) with F16C.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "unroll.h"

namespace shardloom::avx512 {
namespace {

struct Vec {
  static constexpr int kLanes = 16;
  // Registers that a kernel may plan with.
  static constexpr int kRegisters = 32;

  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set(float value) { return {_mm512_set1_ps(value)}; }
  // 0, 1, 2, ...
  static Vec iota() { return {_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}; }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const bf16* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Vec load(const f16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec load(const std::int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }

  // The first `count` (0 to kLanes) elements, zeros after them; nothing beyond them is read.
  static Vec load_first(const float* p, std::int64_t count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
  static Vec load_first(const bf16* p, std::int64_t count) {
    return widen_bf16(_mm256_maskz_loadu_epi16(first(count), p));
  }
  static Vec load_first(const f16* p, std::int64_t count) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p))};
  }
  static Vec load_first(const std::int8_t* p, std::int64_t count) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(count), p)))};
  }

  // The bits of 2 * kLanes bf16, or of the first `count` of them, as kLanes pairs.
  static Vec load_pairs(const bf16* p) { return {_mm512_castsi512_ps(_mm512_loadu_si512(p))}; }
  static Vec load_first_pairs(const bf16* p, std::int64_t count) {
    const auto mask = static_cast<__mmask32>((std::uint64_t{1} << count) - 1u);
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p))};
  }
  // The values of the first and of the second bf16 of each pair.
  static Vec first_of_pairs(Vec pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs.v), 16))};
  }
  static Vec second_of_pairs(Vec pairs) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs.v), high))};
  }

  static float widened(f16 value) { return _cvtsh_ss(value.bits); }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16()); }
  void store(f16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16()); }
  // Numbers from -128 to 127, to the nearest, ties to even.
  void store(std::int8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  void store_first(float* p, std::int64_t count) const { _mm512_mask_storeu_ps(p, first(count), v); }
  void store_first(bf16* p, std::int64_t count) const { _mm256_mask_storeu_epi16(p, first(count), narrow_bf16()); }
  void store_first(f16* p, std::int64_t count) const { _mm256_mask_storeu_epi16(p, first(count), narrow_f16()); }

  // The same value, pinned to a register: a compiler may otherwise load it again for every use.
  static Vec kept(Vec a) {
    __asm__("" : "+v"(a.v));
    return a;
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  // a * b + c
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // b where either is NaN.
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
  static Vec copy_sign(Vec magnitude, Vec sign) {
    return {_mm512_or_ps(magnitude.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))};
  }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // 2^n for whole n in [-126, 127].
  static Vec exp2_whole(Vec n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
  }
  // a < b ? x : y; y where either is NaN.
  static Vec where_less(Vec a, Vec b, Vec x, Vec y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
  }
  // Whether any lane of a is less than that of b; NaN is less than nothing.
  static bool any_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ) != 0; }
  // Bit i is set where lane i of a equals that of b.
  static std::uint32_t equal_bits(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }

  // Folds halves together: lane i and lane i + 8, then + 4, + 2, + 1. sum4 adds in the same order.
  float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float max_lane() const { return _mm512_reduce_max_ps(v); }

  // out[i] = sum of the i-th vector, bit for bit what sum() gives.
  static void sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44), _mm512_shuffle_f32x4(c.v, d.v, 0xee));
    const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
    const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(lanes, one)));
  }

  // Lane j of rows[i] and lane i of rows[j] change places.
  static void transpose(Vec (&rows)[kLanes]) {
    __m512 t[kLanes];
    repeat<kLanes / 4>([&](auto quad) {
      constexpr int i = 4 * quad;
      const __m512 ab_low = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
      const __m512 ab_high = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
      const __m512 cd_low = _mm512_unpacklo_ps(rows[i + 2].v, rows[i + 3].v);
      const __m512 cd_high = _mm512_unpackhi_ps(rows[i + 2].v, rows[i + 3].v);
      t[i] = _mm512_shuffle_ps(ab_low, cd_low, 0x44);
      t[i + 1] = _mm512_shuffle_ps(ab_low, cd_low, 0xee);
      t[i + 2] = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
      t[i + 3] = _mm512_shuffle_ps(ab_high, cd_high, 0xee);
    });
    // Quarter q of t[i + k] holds column 4q + k of rows i .. i + 3; gather the quarters of each column.
    repeat<4>([&](auto k) {
      const __m512 low01 = _mm512_shuffle_f32x4(t[k], t[k + 4], 0x88);
      const __m512 low23 = _mm512_shuffle_f32x4(t[k + 8], t[k + 12], 0x88);
      const __m512 high01 = _mm512_shuffle_f32x4(t[k], t[k + 4], 0xdd);
      const __m512 high23 = _mm512_shuffle_f32x4(t[k + 8], t[k + 12], 0xdd);
      rows[k].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
      rows[k + 4].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
      rows[k + 8].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
      rows[k + 12].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    });
  }

 private:
  static __mmask16 first(std::int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

  static Vec widen_bf16(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }

  // Rounds to nearest, ties to even; NaN stays a quiet NaN.
  __m256i narrow_bf16() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
  }

  __m256i narrow_f16() const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

}  // namespace
}  // namespace shardloom::avx512
