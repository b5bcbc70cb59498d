// Linear layers with arranged weights on AVX2, for codes of any kind. Two vectors hold the 32-bit lanes of the sixteen rows
// of a group, eight each; activations are broadcast, 32 bits at a time. Nothing is summed across lanes.
//
// Few rows of x decode codes in registers, as one sequential stream. More rows take a chunk of blocks whose codes are
// decoded once, into memory that stays in the L1 cache, and pass over it four rows at a time.
//
// A `Format` is made from its matrix and has
//   Matrix
//   kUnitInputs            inputs whose codes are in one unit of 64 bytes
//   kWords                 words of 32 bits that hold as many codes of x
//   decode(half, words)    weights of eight rows in whole numbers, from half a unit: words[i] meets word i of x
//   dot(sum, weights, x)   sum + the products of a word
#pragma once

#include <immintrin.h>

#include "../prefetch.h"
#include "arranged_layout.h"
#include "unroll.h"
#include "vector_avx2.h"

namespace shardloom::avx2 {
namespace {

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

  // One group, and where the pass over its blocks stands.
  struct Place {
    const Format& format;
    const Matrix& weight;
    Group group;
    std::int64_t units;      // of a block of x
    std::int64_t per_scale;  // blocks of x that share a scale
  };

  static __m256i word_at(const QuantizedRows& x, std::int64_t row, std::int64_t offset) {
    std::int32_t word;
    std::memcpy(&word, static_cast<const char*>(x.codes) + row * x.code_stride + offset, sizeof word);
    return _mm256_set1_epi32(word);
  }

  // Scales or minimums of eight rows, as f32.
  static __m256 values_at(const void* values, DType dtype, std::int64_t at) {
    if (dtype == DType::f16) return Vec::load(static_cast<const f16*>(values) + at).v;
    return Vec::load(static_cast<const float*>(values) + at).v;
  }

  // Adds what the whole sums of block `block` are worth to the totals of M rows.
  template <int M>
  static inline void scale_block(const Place& place, const QuantizedRows& x, std::int64_t first_row, std::int64_t block,
                                 const __m256i (&sums)[M * kHalves], float (&totals)[M][kGroupRows]) {
    const std::int64_t at = block / place.per_scale * kGroupRows;
    repeat<kHalves>([&](auto h) {
      const __m256 scales = values_at(place.group.scales, place.group.value_dtype, at + h * kHalfRows);
      repeat<M>([&](auto m) {
        float* total = totals[m] + h * kHalfRows;
        const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(x.scales[(first_row + m) * x.blocks + block]), scales);
        const __m256 sum = _mm256_cvtepi32_ps(sums[m * kHalves + h]);
        _mm256_storeu_ps(total, _mm256_fmadd_ps(sum, factor, _mm256_loadu_ps(total)));
      });
      if (place.group.minimums == nullptr) return;
      const __m256 minimums = values_at(place.group.minimums, place.group.value_dtype, at + h * kHalfRows);
      repeat<M>([&](auto m) {
        float* total = totals[m] + h * kHalfRows;
        const __m256 factor = _mm256_set1_ps(x.sums[(first_row + m) * x.blocks + block]);
        _mm256_storeu_ps(total, _mm256_fmadd_ps(factor, minimums, _mm256_loadu_ps(total)));
      });
    });
  }

  static void load_totals(const ArrangedLinearArgs& args, const Group& group, std::int64_t row, float* totals) {
    const float* out = args.out + row * args.out_stride + group.first_output;
    std::memcpy(totals, out, static_cast<std::size_t>(group.rows) * sizeof(float));
  }

  static void store_totals(const ArrangedLinearArgs& args, const Group& group, std::int64_t row, float* totals,
                           bool last) {
    float* out = args.out + row * args.out_stride + group.first_output;
    if (last && args.bias != nullptr) {
      for (std::int64_t n = 0; n < group.rows; n++) totals[n] += args.bias[group.first_output + n];
    }
    std::memcpy(out, totals, static_cast<std::size_t>(group.rows) * sizeof(float));
  }

  // M rows of x with a whole group, decoded as it is read.
  template <int M>
  __attribute__((flatten)) static void stream(const ArrangedLinearArgs& args, const Place& place, std::int64_t first_row) {
    const QuantizedRows& x = args.x;
    const std::int64_t block_bytes = place.units * Format::kWords * 4;
    const std::int64_t scale_ahead = kAheadBytes / (place.units * kUnitBytes * place.per_scale) * kGroupRows;
    float totals[M][kGroupRows] = {};
    const std::uint8_t* codes = place.group.codes;
    for (std::int64_t block = 0; block < x.blocks; block++) {
      __m256i sums[M * kHalves];
      repeat<M * kHalves>([&](auto i) { sums[i] = _mm256_setzero_si256(); });
      std::int64_t offset = block * block_bytes;
      for (std::int64_t unit = 0; unit < place.units; unit++, codes += kUnitBytes, offset += Format::kWords * 4) {
        prefetch(codes + kAheadBytes);
        repeat<kHalves>([&](auto h) {
          __m256i words[Format::kWords];
          place.format.decode(codes + h * kHalfBytes, words);
          repeat<Format::kWords>([&](auto w) {
            repeat<M>([&](auto m) {
              constexpr int kAt = m * kHalves + h;
              sums[kAt] = Format::dot(sums[kAt], words[w], word_at(x, first_row + m, offset + w * 4));
            });
          });
        });
      }
      const std::int64_t ahead = block / place.per_scale * kGroupRows + scale_ahead;
      prefetch(element_at(place.group.scales, place.group.value_dtype, ahead));
      scale_block<M>(place, x, first_row, block, sums, totals);
    }
    repeat<M>([&](auto m) { store_totals(args, place.group, first_row + m, totals[m], true); });
  }

  // M rows of x with the blocks `blocks`, which are decoded.
  template <int M>
  __attribute__((flatten)) static void pass(const ArrangedLinearArgs& args, const Place& place, std::int64_t first_row, Range blocks,
                   const __m256i* decoded) {
    const QuantizedRows& x = args.x;
    const std::int64_t block_bytes = place.units * Format::kWords * 4;
    float totals[M][kGroupRows] = {};
    if (blocks.begin > 0) {
      repeat<M>([&](auto m) { load_totals(args, place.group, first_row + m, totals[m]); });
    }
    for (std::int64_t block = blocks.begin; block < blocks.end; block++) {
      __m256i sums[M * kHalves];
      repeat<M * kHalves>([&](auto i) { sums[i] = _mm256_setzero_si256(); });
      std::int64_t offset = block * block_bytes;
      for (std::int64_t unit = 0; unit < place.units; unit++, offset += Format::kWords * 4) {
        repeat<Format::kWords>([&](auto w) {
          repeat<M>([&](auto m) {
            const __m256i word = word_at(x, first_row + m, offset + w * 4);
            repeat<kHalves>([&](auto h) {
              constexpr int kAt = m * kHalves + h;
              sums[kAt] = Format::dot(sums[kAt], decoded[h * Format::kWords + w], word);
            });
          });
        });
        decoded += kHalves * Format::kWords;
      }
      scale_block<M>(place, x, first_row, block, sums, totals);
    }
    const bool last = blocks.end == x.blocks;
    repeat<M>([&](auto m) { store_totals(args, place.group, first_row + m, totals[m], last); });
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

  static void decode_blocks(const Place& place, Range blocks, __m256i* decoded) {
    const std::uint8_t* codes = place.group.codes + blocks.begin * place.units * kUnitBytes;
    for (std::int64_t unit = 0; unit < (blocks.end - blocks.begin) * place.units; unit++, codes += kUnitBytes) {
      repeat<kHalves>([&](auto h) {
        __m256i words[Format::kWords];
        place.format.decode(codes + h * kHalfBytes, words);
        repeat<Format::kWords>([&](auto w) { _mm256_store_si256(decoded + h * Format::kWords + w, words[w]); });
      });
      decoded += kHalves * Format::kWords;
    }
  }

  static void chunks(const ArrangedLinearArgs& args, const Place& place) {
    __m256i decoded[kChunkVectors];
    const std::int64_t most = kChunkVectors / (place.units * kHalves * Format::kWords);
    for (std::int64_t first = 0; first < args.x.blocks; first += most) {
      const std::int64_t end = first + most < args.x.blocks ? first + most : args.x.blocks;
      decode_blocks(place, {first, end}, decoded);
      for (std::int64_t row = 0; row < args.rows; row += kTileRows) {
        pass_rows<kTileRows>(args, place, row, {first, end}, decoded);
      }
    }
  }

  static void linear(const ArrangedLinearArgs& args, const Matrix& weight, Range groups) {
    const Format format(weight);
    for (std::int64_t g = groups.begin; g < groups.end; g++) {
      const Place place = {format, weight, group_at(weight, g), args.x.block / Format::kUnitInputs,
                           weight.block_size / args.x.block};
      if (args.rows <= kTileRows) {
        stream_rows<kTileRows>(args, place, 0);
      } else {
        chunks(args, place);
      }
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
  static __m256i dot(__m256i sum, __m256i weights, __m256i x) {
    return add_in_order(sum, _mm256_madd_epi16(weights, x));
  }
};

// Weights of 8 bits, from -128 to 127, and activations from -127 to 127: four products a lane. One factor has to be
// unsigned, so it gives its sign to the other; two products of 128 and 127 fit into 16 bits.
struct Dot8 {
  static __m256i dot(__m256i sum, __m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return add_in_order(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace shardloom::avx2
