// Linear layers with arranged weights on AVX-512, for codes of any kind. A vector holds one 32-bit lane for each of the
// sixteen rows of a group; activations are broadcast, 32 bits at a time. Nothing is summed across lanes.
//
// A `Format` is made from its matrix and has
//   Matrix
//   kUnitInputs            inputs whose codes are in one unit of 64 bytes
//   kWords                 words of 32 bits that hold as many codes of x
//   start(x, at)           what the sum of block `at` of x begins with
//   kTileRows              most rows of x in a tile: its sums, and those of a block, stay in registers beside what is decoded
//   kWholeScales           whether sums of blocks may be small enough for `offset_of`; then
//   small_sums(block)      whether those of `block` inputs are
//   Word                   what is decoded of 32 bits of x a row
//   decode<i>(unit)        weights in whole numbers: what meets word i of x
//   dot(sum, weights, x)   sum + the products of a word
#pragma once

#include <immintrin.h>

#include "../prefetch.h"
#include "arranged_layout.h"
#include "unroll.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {
namespace {

// What a Format has that meets activations of 16 bits, and one that meets those of 8. `Dots`: arranged_dots_avx512.h.
template <class Dots>
struct Int16Words {
  static constexpr bool kWholeScales = false;
  static constexpr int kTileRows = Dots::kTileRows;
  using Word = __m512i;

  static __m512i start(const std::int32_t*, std::int64_t) { return _mm512_setzero_si512(); }
  static __m512i dot(__m512i sum, __m512i weights, __m512i x) { return Dots::pairs(sum, weights, x); }
};

template <class Dots>
struct Int8Words {
  static constexpr bool kWholeScales = false;
  static constexpr int kTileRows = Dots::kTileRows;
  using Word = typename Dots::Bytes;

  static __m512i start(const std::int32_t* x_starts, std::int64_t at) { return Dots::start(x_starts, at); }
  static __m512i dot(__m512i sum, const Word& weights, __m512i x) { return Dots::fours(sum, weights, x); }
};

template <class Format>
struct Arranged {
  using Matrix = typename Format::Matrix;

  // Rows of x that share what was decoded, and groups that share a word of x: broadcasts from memory would bound a tile of
  // one group.
  static constexpr int kTileRows = Format::kTileRows;
  static constexpr int kTileGroups = 2;
  // Codes of so many groups stay in the nearer caches while all tiles of x pass by.
  static constexpr std::int64_t kPassBytes = 128 * 1024;
  // How far ahead codes are requested.
  static constexpr std::int64_t kAheadBytes = 4096;

  // Independent sums of a row of x and a group: a chain of dependent ones would be slower than memory.
  template <int M>
  static constexpr int chains() {
    return M == 1 ? Format::kWords : M == 2 && Format::kWords > 1 ? 2 : 1;
  }

  // What a tile knows of x: pointers to its first row.
  struct Rows {
    const char* codes;
    std::int64_t code_stride;
    const float* scales;
    const float* sums;
    const std::int32_t* starts;
    std::int64_t blocks;
  };

  static Rows rows_from(const QuantizedRows& x, std::int64_t first) {
    const std::int64_t at = first * x.blocks;
    return {static_cast<const char*>(x.codes) + first * x.code_stride, x.code_stride, x.scales + at, x.sums + at,
            x.starts + at, x.blocks};
  }

  static __m512i word_at(const char* codes) {
    std::int32_t word;
    std::memcpy(&word, codes, sizeof word);
    return _mm512_set1_epi32(word);
  }

  // How the sum of a block becomes a float times the scale of x and that of the weight. By a product of the scales, for each
  // row of x and each vector of weights; or, where sums are small and scales of x powers of two, without it: a sum of whole
  // numbers that begins with the bits of 1.5 * 2^23 * scale is, as a float, (1.5 * 2^23 + sum) * scale, exactly. That saves one
  // of two multiplications a block beside those of codes, and gives the same bits.
  enum class Scaling { products, offsets };
  static constexpr std::int32_t kOffsetBits = (23 << 23) + (1 << 22);
  // Sums from -2^22 on leave the exponent as it is.
  static constexpr std::int64_t kOffsetSums = 1 << 22;
  // Scales whose products with an f16 are normal numbers, and exact: 0, and powers of two from 2^-60 to 2^60.
  static constexpr std::int32_t kLeastScaleBits = (127 - 60) << 23;
  static constexpr std::int32_t kScaleBitsRange = 120 << 23;

  static __m512i offset_of(const float* scale) {
    std::int32_t bits;
    std::memcpy(&bits, scale, sizeof bits);
    return _mm512_add_epi32(_mm512_set1_epi32(bits), _mm512_set1_epi32(kOffsetBits));
  }

  static bool are_whole_scales(const float* scales, std::int64_t count) {
    __mmask16 others = 0;
    for (std::int64_t i = 0; i < count && others == 0; i += kGroupRows) {
      const auto mask = static_cast<__mmask16>(count - i < kGroupRows ? (1u << (count - i)) - 1u : 0xffffu);
      const __m512i bits = _mm512_maskz_loadu_epi32(mask, scales + i);
      const __m512i from_least = _mm512_sub_epi32(bits, _mm512_set1_epi32(kLeastScaleBits));
      const __mmask16 beyond = _mm512_cmpgt_epu32_mask(from_least, _mm512_set1_epi32(kScaleBitsRange));
      const __mmask16 broken = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x007fffff));
      others = _mm512_mask_test_epi32_mask(static_cast<__mmask16>(beyond | broken), bits, bits);
    }
    return others == 0;
  }

  // The sums of one block of inputs, `offset` bytes into the codes of a row of x: that of row m and group g is what its
  // chains, from (m * G + g) * chains<M>() on, are together. A block has a unit at least.
  template <int M, int G, Scaling kScaling>
  static void block_sums(const Format& format, const std::uint8_t* const (&units)[G], std::int64_t unit_bytes,
                         const Rows& x, std::int64_t block, std::int64_t offset,
                         __m512i (&chain)[M * G * chains<M>()]) {
    constexpr int kChains = chains<M>();
    repeat<M>([&](auto m) {
      const std::int64_t of_x = m * x.blocks + block;
      const __m512i start = kScaling == Scaling::offsets ? offset_of(x.scales + of_x) : Format::start(x.starts, of_x);
      repeat<G>([&](auto g) {
        chain[(m * G + g) * kChains] = start;
        repeat<kChains - 1>([&](auto c) { chain[(m * G + g) * kChains + 1 + c] = _mm512_setzero_si512(); });
      });
    });
    const char* codes = x.codes + offset;
    std::int64_t at = 0;
    do {
      repeat<G>([&](auto g) { prefetch(units[g] + at + kAheadBytes); });
      repeat<Format::kWords>([&](auto w) {
        typename Format::Word words[G];
        repeat<G>([&](auto g) { words[g] = format.template decode<w>(units[g] + at); });
        repeat<M>([&](auto m) {
          const __m512i word = word_at(codes + m * x.code_stride + w * 4);
          repeat<G>([&](auto g) {
            constexpr int kAt = (m * G + g) * kChains + w % kChains;
            chain[kAt] = Format::dot(chain[kAt], words[g], word);
          });
        });
      });
      codes += Format::kWords * 4;
      at += kUnitBytes;
    } while (at < unit_bytes);
  }

  // totals[m * G + g] += sums[m * G + g] * (scales[m] * columns[g]), fused.
  template <int M, int G, Scaling kScaling>
  static inline void add_sums(const float* scales, std::int64_t stride, const __m512 (&columns)[G], const __m512i* sums,
                              __m512 (&totals)[M * G]) {
    repeat<M>([&](auto m) {
      const __m512 scale = _mm512_set1_ps(scales[m * stride]);
      const __m512 offset = _mm512_castsi512_ps(offset_of(scales + m * stride));
      repeat<G>([&](auto g) {
        constexpr int kAt = m * G + g;
        const __m512i sum = sums[kAt * chains<M>()];
        if constexpr (kScaling == Scaling::offsets) {
          const __m512 scaled = _mm512_sub_ps(_mm512_castsi512_ps(sum), offset);
          totals[kAt] = _mm512_fmadd_ps(scaled, columns[g], totals[kAt]);
        } else {
          totals[kAt] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, columns[g]), totals[kAt]);
        }
      });
    });
  }

  // totals[m * G + g] += values[m] * columns[g], fused.
  template <int M, int G>
  static inline void add_products(const float* values, std::int64_t stride, const __m512 (&columns)[G],
                                  __m512 (&totals)[M * G]) {
    repeat<M>([&](auto m) {
      const __m512 value = _mm512_set1_ps(values[m * stride]);
      repeat<G>([&](auto g) { totals[m * G + g] = _mm512_fmadd_ps(value, columns[g], totals[m * G + g]); });
    });
  }

  // Scales or minimums of sixteen rows, as f32.
  template <class Value, int G>
  static void load_columns(const Value* const (&from)[G], std::int64_t at, __m512 (&columns)[G]) {
    repeat<G>([&](auto g) { columns[g] = Vec::load(from[g] + at).v; });
  }

  // M rows of x by G groups, whose scales and minimums are of type Value. What it calls is part of it: as functions of their
  // own, the bodies of `repeat` would keep their registers in memory.
  template <int M, int G, class Value, bool kMinimums, Scaling kScaling>
  __attribute__((flatten)) static void tile(const ArrangedLinearArgs& args, const Format& format, const Matrix& weight, std::int64_t first_group,
                   std::int64_t first_row) {
    const Rows x = rows_from(args.x, first_row);
    const std::int64_t unit_bytes = args.x.block / Format::kUnitInputs * kUnitBytes;
    const std::int64_t per_scale = weight.block_size / args.x.block;
    const std::int64_t code_bytes = unit_bytes / kUnitBytes * Format::kWords * 4;
    const std::int64_t scale_ahead = kAheadBytes / (unit_bytes * per_scale) * kGroupRows;
    const std::uint8_t* units[G];
    const Value* scales[G];
    const Value* minimums[G];
    repeat<G>([&](auto g) {
      const Group group = group_at(weight, first_group + g);
      units[g] = group.codes;
      scales[g] = static_cast<const Value*>(group.scales);
      minimums[g] = static_cast<const Value*>(group.minimums);
    });
    __m512 totals[M * G];
    repeat<M * G>([&](auto i) { totals[i] = _mm512_setzero_ps(); });
    std::int64_t at = 0;
    std::int64_t left = per_scale;
    for (std::int64_t block = 0; block < x.blocks; block++) {
      constexpr int kChains = chains<M>();
      __m512i sums[M * G * kChains];
      block_sums<M, G, kScaling>(format, units, unit_bytes, x, block, block * code_bytes, sums);
      repeat<M * G>([&](auto i) {
        __m512i& sum = sums[i * kChains];
        repeat<kChains - 1>([&](auto c) { sum = _mm512_add_epi32(sum, sums[i * kChains + 1 + c]); });
      });
      __m512 columns[G];
      load_columns(scales, at, columns);
      add_sums<M, G, kScaling>(x.scales + block, x.blocks, columns, sums, totals);
      if constexpr (kMinimums) {
        load_columns(minimums, at, columns);
        add_products<M, G>(x.sums + block, x.blocks, columns, totals);
      }
      repeat<G>([&](auto g) {
        units[g] += unit_bytes;
        prefetch(scales[g] + at + scale_ahead);
        if constexpr (kMinimums) prefetch(minimums[g] + at + scale_ahead);
      });
      left -= 1;
      at += left == 0 ? kGroupRows : 0;
      left = left == 0 ? per_scale : left;
    }
    repeat<G>([&](auto g) {
      const std::int64_t output = (first_group + g) * kGroupRows;
      const std::int64_t rows = weight.outputs - output;
      const auto mask = static_cast<__mmask16>(rows < kGroupRows ? (1u << rows) - 1u : 0xffffu);
      repeat<M>([&](auto m) {
        __m512 total = totals[m * G + g];
        if (args.bias != nullptr) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(mask, args.bias + output));
        _mm512_mask_storeu_ps(args.out + (first_row + m) * args.out_stride + output, mask, total);
      });
    });
  }

  template <int M, class Value, bool kMinimums, Scaling kScaling>
  static void row_tile(const ArrangedLinearArgs& args, const Format& format, const Matrix& weight, Range groups,
                       std::int64_t first_row) {
    constexpr int kGroups = M == 1 ? 1 : kTileGroups;
    std::int64_t g = groups.begin;
    for (; g + kGroups <= groups.end; g += kGroups) {
      tile<M, kGroups, Value, kMinimums, kScaling>(args, format, weight, g, first_row);
    }
    for (; g < groups.end; g++) tile<M, 1, Value, kMinimums, kScaling>(args, format, weight, g, first_row);
  }

  template <int M, class Value, Scaling kScaling>
  static void scaled_row_tile(const ArrangedLinearArgs& args, const Format& format, const Matrix& weight, Range groups,
                              std::int64_t first_row) {
    if (weight.minimums == nullptr) return row_tile<M, Value, false, kScaling>(args, format, weight, groups, first_row);
    row_tile<M, Value, true, kScaling>(args, format, weight, groups, first_row);
  }

  // `rows` rows of x from `first_row` on, at most M, with a range of groups.
  template <class Value, int M>
  static void row_tiles(const ArrangedLinearArgs& args, const Format& format, const Matrix& weight, Range groups,
                        std::int64_t first_row, std::int64_t rows) {
    if (rows == M) {
      if constexpr (Format::kWholeScales && std::is_same_v<Value, f16>) {
        const QuantizedRows& x = args.x;
        if (format.small_sums(x.block) && are_whole_scales(x.scales + first_row * x.blocks, M * x.blocks)) {
          return scaled_row_tile<M, Value, Scaling::offsets>(args, format, weight, groups, first_row);
        }
      }
      scaled_row_tile<M, Value, Scaling::products>(args, format, weight, groups, first_row);
    } else if constexpr (M > 1) {
      row_tiles<Value, M - 1>(args, format, weight, groups, first_row, rows);
    }
  }

  static void linear(const ArrangedLinearArgs& args, const Matrix& weight, Range groups) {
    if (weight.value_dtype == DType::f16) return linear_of<f16>(args, weight, groups);
    linear_of<float>(args, weight, groups);
  }

  template <class Value>
  static void linear_of(const ArrangedLinearArgs& args, const Matrix& weight, Range groups) {
    const Format format(weight);
    const std::int64_t tile_count = (args.rows + kTileRows - 1) / kTileRows;
    const std::int64_t fitting = weight.group_bytes == 0 ? 1 : kPassBytes / weight.group_bytes;
    const std::int64_t pass_groups = fitting < kTileGroups ? kTileGroups : fitting / kTileGroups * kTileGroups;
    const std::int64_t step = tile_count == 1 ? groups.end - groups.begin : pass_groups;
    for (std::int64_t g = groups.begin; g < groups.end; g += step) {
      const Range pass = {g, g + step < groups.end ? g + step : groups.end};
      for (std::int64_t i = 0; i < tile_count; i++) {
        const std::int64_t first = args.rows * i / tile_count;
        row_tiles<Value, kTileRows>(args, format, weight, pass, first, args.rows * (i + 1) / tile_count - first);
      }
    }
  }
};

}  // namespace
}  // namespace shardloom::avx512
