// Linear layers with arranged weights on AVX2, for codes of any kind. Two vectors hold the 32-bit lanes of the sixteen rows
// of a group, eight each; activations are broadcast, 32 bits at a time. Nothing is summed across lanes.
//
// Rows of x are taken four at a time. Few of them decode codes in registers, as a sequential stream that later ones find in the
// cache. More rows take a chunk of blocks whose codes are decoded once, into memory that stays in the L1 cache, and pass over it.
//
// A `Format` is made from its matrix and has
//   Matrix
//   kUnitInputs            inputs whose codes are in one unit of 64 bytes
//   kWords                 words of 32 bits that hold as many codes of x
//   decode(half, words)    weights of eight rows in whole numbers, from half a unit: words[i] meets word i of x
//   dot(sum, weights, x)   sum + the products of a word
//   kFinish                what becomes of a sum (Finish)
//   kStreamRows            rows of x up to which decoding codes again for each tile is faster than keeping what was decoded
#pragma once

#include <immintrin.h>

#include "../prefetch.h"
#include "arranged_layout.h"
#include "unroll.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {
namespace {

// A Format::kStreamRows.
constexpr std::int64_t kAnyRows = 0;

// What becomes of the sums that `dot` makes of a block.
enum class Finish {
  none,     // nothing
  scaled,   // finish(sum), and what the least code is worth (QuantizedRows::starts) is added
  widened,  // the same, but they are sums of 16 bits, in lanes of pairs of inputs, and hold `units` units at most
};

template <class Format>
struct Arranged {
  using Matrix = typename Format::Matrix;

  // Rows of x that share what was decoded: their sums of eight lanes, two each, fill half of the registers.
  static constexpr int kTileRows = 4;
  // Vectors of decoded codes that a chunk may have: 16 KiB.
  static constexpr int kChunkVectors = 512;
  // How far ahead of few rows codes are requested.
  static constexpr std::int64_t kAheadBytes = 2048;
  static constexpr int kHalves = 2;
  static constexpr std::int64_t kHalfBytes = kUnitBytes / kHalves;
  static constexpr int kHalfRows = static_cast<int>(kGroupRows) / kHalves;

  // One group.
  struct Place {
    const Format& format;
    Group group;
    std::int64_t units;      // of a block of x
    std::int64_t per_scale;  // blocks of x that share a scale
  };

  // What a tile knows of x: pointers to its first row.
  struct Rows {
    const char* codes;
    std::int64_t code_stride;
    const float* scales;
    const float* sums;
    const std::int32_t* starts;
    std::int64_t blocks;
  };

  static Rows rows_from(const QuantizedRows& x, std::int64_t row) {
    const std::int64_t at = row * x.blocks;
    return {static_cast<const char*>(x.codes) + row * x.code_stride, x.code_stride, x.scales + at, x.sums + at,
            x.starts + at, x.blocks};
  }

  static __m256i word_at(const char* codes) {
    std::int32_t word;
    std::memcpy(&word, codes, sizeof word);
    return _mm256_set1_epi32(word);
  }

  // Scales or minimums of eight rows, as f32.
  static __m256 values_at(const void* values, DType dtype, std::int64_t at) {
    if (dtype == DType::f16) return Vec::load(static_cast<const f16*>(values) + at).v;
    return Vec::load(static_cast<const float*>(values) + at).v;
  }

  // Sums of a tile: that of row m and half h is at m * kHalves + h.
  template <int M>
  using Sums = __m256i[M * kHalves];

  // Units that are decoded, one after the other.
  struct DecodedUnits {
    const __m256i* words;

    template <int M>
    __attribute__((always_inline)) inline void add_next(const Format&, const Rows& x, const char* codes, Sums<M>& sums) {
      repeat<Format::kWords>([&](auto w) {
        const __m256i weights[kHalves] = {words[w], words[Format::kWords + w]};
        repeat<M>([&](auto m) {
          const __m256i word = word_at(codes + m * x.code_stride + w * 4);
          repeat<kHalves>([&](auto h) {
            constexpr int kAt = m * kHalves + h;
            sums[kAt] = Format::dot(sums[kAt], weights[h], word);
          });
        });
      });
      words += kHalves * Format::kWords;
    }
  };

  // Units that are decoded as they are read.
  struct CodedUnits {
    const std::uint8_t* units;

    template <int M>
    __attribute__((always_inline)) inline void add_next(const Format& format, const Rows& x, const char* codes,
                                                        Sums<M>& sums) {
      prefetch(units + kAheadBytes);
      repeat<kHalves>([&](auto h) {
        __m256i words[Format::kWords];
        format.decode(units + h * kHalfBytes, words);
        repeat<Format::kWords>([&](auto w) {
          repeat<M>([&](auto m) {
            constexpr int kAt = m * kHalves + h;
            sums[kAt] = Format::dot(sums[kAt], words[w], word_at(codes + m * x.code_stride + w * 4));
          });
        });
      });
      units += kUnitBytes;
    }
  };

  // The sums of `units` units, at least one, from zero on.
  template <int M, class Units>
  __attribute__((always_inline)) static inline void add_units(const Format& format, const Rows& x, Units& from,
                                                              std::int64_t units, const char*& codes, Sums<M>& sums) {
    repeat<M * kHalves>([&](auto i) { sums[i] = _mm256_setzero_si256(); });
    do {
      from.template add_next<M>(format, x, codes, sums);
      codes += Format::kWords * 4;
    } while (--units > 0);
  }

  static __m256i load_wide(const std::int32_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store_wide(__m256i sum, std::int32_t* to) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), sum); }

  static __m256i start_of(const Rows& x, std::int64_t row, std::int64_t block) {
    return _mm256_set1_epi32(x.starts[row * x.blocks + block]);
  }

  // The sums of one block of x.
  template <int M, class Units>
  __attribute__((always_inline)) static inline void block_sums(const Place& place, const Rows& x, std::int64_t block,
                                                               Units& from, const char*& codes, Sums<M>& sums) {
    const Format& format = place.format;
    if constexpr (Format::kFinish == Finish::widened) {
      if (place.units > format.units) return wide_sums<M>(place, x, block, from, codes, sums);
    }
    add_units<M>(format, x, from, place.units, codes, sums);
    if constexpr (Format::kFinish != Finish::none) {
      repeat<M>([&](auto m) {
        const __m256i start = start_of(x, m, block);
        repeat<kHalves>([&](auto h) {
          constexpr int kAt = m * kHalves + h;
          sums[kAt] = _mm256_add_epi32(format.finish(sums[kAt]), start);
        });
      });
    }
  }

  // The same where 16 bits do not hold the sums of a block. Those of 32 bits would not stay in registers beside them.
  template <int M, class Units>
  __attribute__((always_inline)) static inline void wide_sums(const Place& place, const Rows& x, std::int64_t block,
                                                              Units& from, const char*& codes, Sums<M>& sums) {
    const Format& format = place.format;
    alignas(32) std::int32_t wide[M * kHalves][kHalfRows];
    repeat<M>([&](auto m) {
      repeat<kHalves>([&](auto h) { store_wide(start_of(x, m, block), wide[m * kHalves + h]); });
    });
    for (std::int64_t left = place.units; left > 0; left -= format.units) {
      add_units<M>(format, x, from, left < format.units ? left : format.units, codes, sums);
      repeat<M * kHalves>([&](auto i) {
        store_wide(_mm256_add_epi32(load_wide(wide[i]), format.finish(sums[i])), wide[i]);
      });
    }
    repeat<M * kHalves>([&](auto i) { sums[i] = load_wide(wide[i]); });
  }

  // Adds what the whole sums of a block are worth to the totals of M rows. `at`: where its scales are.
  template <int M>
  __attribute__((always_inline)) static inline void scale_block(const Place& place, const Rows& x, std::int64_t block, std::int64_t at,
                                 const __m256i (&sums)[M * kHalves], float (&totals)[M][kGroupRows]) {
    repeat<kHalves>([&](auto h) {
      const __m256 scales = values_at(place.group.scales, place.group.value_dtype, at + h * kHalfRows);
      repeat<M>([&](auto m) {
        float* total = totals[m] + h * kHalfRows;
        const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(x.scales[m * x.blocks + block]), scales);
        const __m256 sum = _mm256_cvtepi32_ps(sums[m * kHalves + h]);
        _mm256_store_ps(total, _mm256_fmadd_ps(sum, factor, _mm256_load_ps(total)));
      });
    });
    if (place.group.minimums == nullptr) return;
    repeat<kHalves>([&](auto h) {
      const __m256 minimums = values_at(place.group.minimums, place.group.value_dtype, at + h * kHalfRows);
      repeat<M>([&](auto m) {
        float* total = totals[m] + h * kHalfRows;
        const __m256 factor = _mm256_set1_ps(x.sums[m * x.blocks + block]);
        _mm256_store_ps(total, _mm256_fmadd_ps(factor, minimums, _mm256_load_ps(total)));
      });
    });
  }

  static void load_totals(const ArrangedLinearArgs& args, const Place& place, std::int64_t row, float* totals) {
    const float* out = args.out + row * args.out_stride + place.group.first_output;
    std::memcpy(totals, out, static_cast<std::size_t>(place.group.rows) * sizeof(float));
  }

  static void store_totals(const ArrangedLinearArgs& args, const Place& place, std::int64_t row, float* totals,
                           bool last) {
    float* out = args.out + row * args.out_stride + place.group.first_output;
    if (last && args.bias != nullptr) {
      for (std::int64_t n = 0; n < place.group.rows; n++) totals[n] += args.bias[place.group.first_output + n];
    }
    std::memcpy(out, totals, static_cast<std::size_t>(place.group.rows) * sizeof(float));
  }

  // M rows of x with a whole group, decoded as it is read.
  template <int M>
  __attribute__((flatten, noinline)) static void stream(const ArrangedLinearArgs& args, const Place& place,
                                              std::int64_t first_row) {
    const Rows x = rows_from(args.x, first_row);
    const std::int64_t scale_ahead = kAheadBytes / (place.units * kUnitBytes * place.per_scale) * kGroupRows;
    alignas(32) float totals[M][kGroupRows] = {};
    CodedUnits units = {place.group.codes};
    const char* codes = x.codes;
    std::int64_t at = 0;
    std::int64_t left = place.per_scale;
    for (std::int64_t block = 0; block < x.blocks; block++) {
      Sums<M> sums;
      block_sums<M>(place, x, block, units, codes, sums);
      prefetch(element_at(place.group.scales, place.group.value_dtype, at + scale_ahead));
      prefetch(element_at(place.group.minimums, place.group.value_dtype, at + scale_ahead));
      scale_block<M>(place, x, block, at, sums, totals);
      left -= 1;
      at += left == 0 ? kGroupRows : 0;
      left = left == 0 ? place.per_scale : left;
    }
    repeat<M>([&](auto m) { store_totals(args, place, first_row + m, totals[m], true); });
  }

  // M rows of x with the blocks `blocks`, which are decoded and begin with a scale.
  template <int M>
  __attribute__((flatten, noinline)) static void pass(const ArrangedLinearArgs& args, const Place& place,
                                            std::int64_t first_row, Range blocks, const __m256i* decoded) {
    const Rows x = rows_from(args.x, first_row);
    alignas(32) float totals[M][kGroupRows] = {};
    if (blocks.begin > 0) {
      repeat<M>([&](auto m) { load_totals(args, place, first_row + m, totals[m]); });
    }
    DecodedUnits units = {decoded};
    const char* codes = x.codes + blocks.begin * place.units * Format::kWords * 4;
    std::int64_t at = blocks.begin / place.per_scale * kGroupRows;
    std::int64_t left = place.per_scale;
    for (std::int64_t block = blocks.begin; block < blocks.end; block++) {
      Sums<M> sums;
      block_sums<M>(place, x, block, units, codes, sums);
      scale_block<M>(place, x, block, at, sums, totals);
      left -= 1;
      at += left == 0 ? kGroupRows : 0;
      left = left == 0 ? place.per_scale : left;
    }
    const bool last = blocks.end == x.blocks;
    repeat<M>([&](auto m) { store_totals(args, place, first_row + m, totals[m], last); });
  }

  // At most M rows, however many are left.
  template <int M>
  static void stream_rows(const ArrangedLinearArgs& args, const Place& place, std::int64_t first_row) {
    if (args.rows - first_row >= M) return stream<M>(args, place, first_row);
    if constexpr (M > 1) stream_rows<M - 1>(args, place, first_row);
  }
  template <int M>
  static void pass_rows(const ArrangedLinearArgs& args, const Place& place, std::int64_t first_row, Range blocks,
                        const __m256i* decoded) {
    if (args.rows - first_row >= M) return pass<M>(args, place, first_row, blocks, decoded);
    if constexpr (M > 1) pass_rows<M - 1>(args, place, first_row, blocks, decoded);
  }

  static void decode_units(const Format& format, const std::uint8_t* codes, std::int64_t units, __m256i* decoded) {
    for (std::int64_t unit = 0; unit < units; unit++, codes += kUnitBytes) {
      prefetch(codes + kAheadBytes);
      repeat<kHalves>([&](auto h) {
        __m256i words[Format::kWords];
        format.decode(codes + h * kHalfBytes, words);
        repeat<Format::kWords>([&](auto w) { _mm256_store_si256(decoded + h * Format::kWords + w, words[w]); });
      });
      decoded += kHalves * Format::kWords;
    }
  }

  static void chunks(const ArrangedLinearArgs& args, const Place& place) {
    __m256i decoded[kChunkVectors];
    // Whole scales, unless one is for more than a chunk: then as many blocks as divide those of a scale.
    const std::int64_t fitting = kChunkVectors / (place.units * kHalves * Format::kWords);
    std::int64_t most = fitting - fitting % place.per_scale;
    if (most == 0) {
      for (most = fitting; place.per_scale % most != 0;) most -= 1;
    }
    for (std::int64_t first = 0; first < args.x.blocks; first += most) {
      const std::int64_t end = first + most < args.x.blocks ? first + most : args.x.blocks;
      decode_units(place.format, place.group.codes + first * place.units * kUnitBytes, (end - first) * place.units, decoded);
      for (std::int64_t row = 0; row < args.rows; row += kTileRows) {
        pass_rows<kTileRows>(args, place, row, {first, end}, decoded);
      }
    }
  }

  static void linear(const ArrangedLinearArgs& args, const Matrix& weight, Range groups) {
    const Format format(weight);
    for (std::int64_t g = groups.begin; g < groups.end; g++) {
      const Place place = {format, group_at(weight, g), args.x.block / Format::kUnitInputs,
                           weight.block_size / args.x.block};
      if constexpr (Format::kStreamRows != kAnyRows) {
        if (args.rows > Format::kStreamRows) {
          chunks(args, place);
          continue;
        }
      }
      for (std::int64_t row = 0; row < args.rows; row += kTileRows) stream_rows<kTileRows>(args, place, row);
    }
  }
};

// sum + products, in this order: left alone, GCC adds products to each other first, and keeps them in memory until then.
inline __m256i add_in_order(__m256i sum, __m256i products) {
  sum = _mm256_add_epi32(sum, products);
  __asm__("" : "+x"(sum));
  return sum;
}

// Weights of 16 bits: two products a lane.
struct Dot16 {
  static constexpr Finish kFinish = Finish::none;

  static __m256i dot(__m256i sum, __m256i weights, __m256i x) {
    return add_in_order(sum, _mm256_madd_epi16(weights, x));
  }
};

// Weights of 8 bits, from -128 to 127, and activations from -127 to 127: four products a lane. One factor has to be
// unsigned, so it gives its sign to the other; two products of 128 and 127 fit into 16 bits.
struct Dot8 {
  static constexpr Finish kFinish = Finish::none;

  static __m256i dot(__m256i sum, __m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return add_in_order(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// Weights of 8 bits less the least of them, in units of `unit`: without sign, and so small that the products of some units
// may be added up in 16 bits. What the least of them is worth is what sums begin with.
struct DotShort {
  static constexpr Finish kFinish = Finish::widened;

  std::int64_t units;
  __m256i unit;  // in 16 bits

  static __m256i dot(__m256i sum, __m256i weights, __m256i x) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x));
    __asm__("" : "+x"(sum));
    return sum;
  }
  __m256i finish(__m256i sum) const { return _mm256_madd_epi16(sum, unit); }
};

}  // namespace
}  // namespace shardloom::avx2
