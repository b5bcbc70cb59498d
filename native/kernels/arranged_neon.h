// Linear layers with arranged weights on NEON, at the two levels of whole numbers.
//
// One register holds four bytes of each of four rows, which is how arranged_layout.h has them, so four registers are the
// rows of a group. A `Format` turns the codes of a step of eight inputs into whole numbers; a `Products` multiplies them
// with those of x and sums them exactly, in the way that its instructions want. What they share is the walk along blocks,
// and that is the definition of kernels.h: the bits of a result depend on no tile and on no instruction.
//
// A `Format` is made from its matrix and has, for the four rows of vector `v` (0 to 3) of a group,
//   kStepBytes               bytes of a group that hold kStep inputs
//   pairs(codes, v, out)     int16: out[p] has inputs 2p and 2p + 1 of the order of x's codes (kPairOrder), row by row
//   bytes(codes, v, out)     int8: out[q] has inputs 4q to 4q + 3, row by row
#pragma once

#include <arm_neon.h>

#include "arranged_layout.h"
#include "unroll.h"

namespace shardloom {
namespace {

// Inputs that are worked on together.
constexpr std::int64_t kStep = 8;
constexpr int kGroupVectors = 4;

// Sums two lanes a row in two registers: of rows 0 and 1, and of rows 2 and 3.
struct SumsOfHalves {
  int32x4_t low;
  int32x4_t high;

  static SumsOfHalves zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  int32x4_t total() const { return vpaddq_s32(low, high); }
};

// Vectors of four rows that kRows rows of x work on at a time, where each such vector and row of x takes `registers` sums.
constexpr int tile_vectors(int rows, int registers) { return rows * registers * kGroupVectors <= 16 ? 4 : 2; }

// int16 codes of x. smlal sums products of single inputs.
struct Int16Products {
  using Code = std::int16_t;
  static constexpr int kMostRows = 4;
  static constexpr int vectors(int rows) { return tile_vectors(rows, 2); }

  template <int kRows, int kVectors>
  struct Sums {
    SumsOfHalves sums[kRows * kVectors];

    void clear() {
      repeat<kRows * kVectors>([&](auto i) { sums[i] = SumsOfHalves::zero(); });
    }

    template <class Format>
    __attribute__((always_inline)) void add(const Format& format, const std::uint8_t* codes, int first_vector,
                                            const Code* const (&x)[kRows], std::int64_t input) {
      int16x8_t in[kRows * 4];
      repeat<kRows>([&](auto m) {
        const int32x4_t pairs = vreinterpretq_s32_s16(vld1q_s16(x[m] + input));
        repeat<4>([&](auto p) { in[4 * m + p] = vreinterpretq_s16_s32(vdupq_laneq_s32(pairs, p)); });
      });
      repeat<kVectors>([&](auto v) {
        int16x8_t weights[4];
        format.pairs(codes, first_vector + v, weights);
        repeat<4>([&](auto p) {
          repeat<kRows>([&](auto m) {
            SumsOfHalves& sum = sums[m * kVectors + v];
            sum.low = vmlal_s16(sum.low, vget_low_s16(weights[p]), vget_low_s16(in[4 * m + p]));
            sum.high = vmlal_high_s16(sum.high, weights[p], in[4 * m + p]);
          });
        });
      });
    }

    int32x4_t total(int m, int v) const { return sums[m * kVectors + v].total(); }
  };
};

// int8 codes of x on any CPU. Two products fit into 16 bits, for x has no -128.
struct Int8Products {
  using Code = std::int8_t;
  static constexpr int kMostRows = 4;
  static constexpr int vectors(int rows) { return tile_vectors(rows, 2); }

  template <int kRows, int kVectors>
  struct Sums {
    SumsOfHalves sums[kRows * kVectors];

    void clear() {
      repeat<kRows * kVectors>([&](auto i) { sums[i] = SumsOfHalves::zero(); });
    }

    template <class Format>
    __attribute__((always_inline)) void add(const Format& format, const std::uint8_t* codes, int first_vector,
                                            const Code* const (&x)[kRows], std::int64_t input) {
      int8x16_t in[kRows * 2];
      repeat<kRows>([&](auto m) {
        const int32x2_t fours = vreinterpret_s32_s8(vld1_s8(x[m] + input));
        repeat<2>([&](auto q) { in[2 * m + q] = vreinterpretq_s8_s32(vdupq_lane_s32(fours, q)); });
      });
      repeat<kVectors>([&](auto v) {
        int8x16_t weights[2];
        format.bytes(codes, first_vector + v, weights);
        repeat<kRows>([&](auto m) {
          SumsOfHalves& sum = sums[m * kVectors + v];
          const int16x8_t low = vmull_s8(vget_low_s8(weights[0]), vget_low_s8(in[2 * m]));
          const int16x8_t high = vmull_high_s8(weights[0], in[2 * m]);
          sum.low = vpadalq_s16(sum.low, vmlal_s8(low, vget_low_s8(weights[1]), vget_low_s8(in[2 * m + 1])));
          sum.high = vpadalq_s16(sum.high, vmlal_high_s8(high, weights[1], in[2 * m + 1]));
        });
      });
    }

    int32x4_t total(int m, int v) const { return sums[m * kVectors + v].total(); }
  };
};

#if defined(__ARM_FEATURE_DOTPROD)

// int8 codes of x. sdot sums four products, which are those of one row.
struct Int8DotProducts {
  using Code = std::int8_t;
  static constexpr int kMostRows = 8;
  static constexpr int vectors(int rows) { return tile_vectors(rows, 1); }

  template <int kRows, int kVectors>
  struct Sums {
    int32x4_t sums[kRows * kVectors];

    void clear() {
      repeat<kRows * kVectors>([&](auto i) { sums[i] = vdupq_n_s32(0); });
    }

    template <class Format>
    __attribute__((always_inline)) void add(const Format& format, const std::uint8_t* codes, int first_vector,
                                            const Code* const (&x)[kRows], std::int64_t input) {
      int8x8_t in[kRows];
      repeat<kRows>([&](auto m) { in[m] = vld1_s8(x[m] + input); });
      repeat<kVectors>([&](auto v) {
        int8x16_t weights[2];
        format.bytes(codes, first_vector + v, weights);
        repeat<2>([&](auto q) {
          repeat<kRows>([&](auto m) {
            int32x4_t& sum = sums[m * kVectors + v];
            sum = vdotq_lane_s32(sum, weights[q], in[m], q);
          });
        });
      });
    }

    int32x4_t total(int m, int v) const { return sums[m * kVectors + v]; }
  };
};

#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)

// int8 codes of x, two rows at a time. smmla multiplies eight inputs of two rows of a weight with those of two rows of x.
struct Int8MatrixProducts {
  using Code = std::int8_t;
  static constexpr int kMostRows = 10;
  static constexpr int vectors(int rows) { return tile_vectors((rows + 1) / 2, 2); }

  // Of a vector of four rows: those of rows 0 and 2, and of rows 1 and 3, each with the first row of x and the second.
  struct SumsOfPairs {
    int32x4_t even;
    int32x4_t odd;
  };

  template <int kRows, int kVectors>
  struct Sums {
    static constexpr int kPairs = (kRows + 1) / 2;
    SumsOfPairs sums[kPairs * kVectors];

    void clear() {
      repeat<kPairs * kVectors>([&](auto i) { sums[i] = {vdupq_n_s32(0), vdupq_n_s32(0)}; });
    }

    template <class Format>
    __attribute__((always_inline)) void add(const Format& format, const std::uint8_t* codes, int first_vector,
                                            const Code* const (&x)[kRows], std::int64_t input) {
      int8x16_t in[kPairs];
      repeat<kPairs>([&](auto p) {
        // The last row of an odd number is its own partner.
        constexpr int kSecond = 2 * p + 1 < kRows ? 2 * p + 1 : 2 * p;
        in[p] = vcombine_s8(vld1_s8(x[2 * p] + input), vld1_s8(x[kSecond] + input));
      });
      repeat<kVectors>([&](auto v) {
        int8x16_t fours[2];
        format.bytes(codes, first_vector + v, fours);
        const int32x4_t first = vreinterpretq_s32_s8(fours[0]), second = vreinterpretq_s32_s8(fours[1]);
        const int8x16_t even = vreinterpretq_s8_s32(vtrn1q_s32(first, second));
        const int8x16_t odd = vreinterpretq_s8_s32(vtrn2q_s32(first, second));
        repeat<kPairs>([&](auto p) {
          SumsOfPairs& sum = sums[p * kVectors + v];
          sum.even = vmmlaq_s32(sum.even, even, in[p]);
          sum.odd = vmmlaq_s32(sum.odd, odd, in[p]);
        });
      });
    }

    int32x4_t total(int m, int v) const {
      const SumsOfPairs& sum = sums[m / 2 * kVectors + v];
      return m % 2 == 0 ? vtrn1q_s32(sum.even, sum.odd) : vtrn2q_s32(sum.even, sum.odd);
    }
  };
};

#endif

template <class Format, class Products>
struct ArrangedLinear {
  using Code = typename Products::Code;
  // Bytes of codes that a single row of x reads ahead.
  static constexpr std::int64_t kAheadBytes = 4096;

  // Rows of x, and what lies behind them, for a tile of them.
  template <int kRows>
  struct Tile {
    const Code* x[kRows];
    const float* scales[kRows];
    const float* block_sums[kRows];
    float* out[kRows];
  };

  template <int kRows>
  static Tile<kRows> tile_at(const ArrangedLinearArgs& args, std::int64_t first_row, std::int64_t first_output) {
    Tile<kRows> tile;
    for (int m = 0; m < kRows; m++) {
      const std::int64_t row = first_row + m;
      tile.x[m] = reinterpret_cast<const Code*>(static_cast<const char*>(args.x.codes) + row * args.x.code_stride);
      tile.scales[m] = args.x.scales + row * args.x.blocks;
      tile.block_sums[m] = args.x.sums + row * args.x.blocks;
      tile.out[m] = args.out + row * args.out_stride + first_output;
    }
    return tile;
  }

  // Scales or minimums of four rows, as f32.
  static float32x4_t values_at(const void* values, DType dtype, std::int64_t at) {
    if (dtype == DType::f32) return vld1q_f32(static_cast<const float*>(values) + at);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const std::uint16_t*>(values) + at)));
  }

  // Stores four sums of rows from `row` of the group on, or as many as there are rows.
  static void store(const ArrangedLinearArgs& args, const Group& group, int row, float32x4_t sums, float* out) {
    float values[4];
    vst1q_f32(values, sums);
    for (std::int64_t i = 0; i < 4 && row + i < group.rows; i++) {
      out[row + i] = args.bias == nullptr ? values[i] : values[i] + args.bias[group.first_output + row + i];
    }
  }

  // kRows rows of x by the rows of a group that are in kVectors vectors from `first_vector` on.
  template <int kRows, int kVectors>
  static void run_vectors(const ArrangedLinearArgs& args, const Format& format, const Group& group,
                          std::int64_t per_scale, const Tile<kRows>& tile, int first_vector) {
    float32x4_t results[kRows * kVectors];
    repeat<kRows * kVectors>([&](auto i) { results[i] = vdupq_n_f32(0.0f); });
    const std::uint8_t* codes = group.codes;
    std::int64_t input = 0;
    for (std::int64_t block = 0; block < args.x.blocks; block++) {
      typename Products::template Sums<kRows, kVectors> sums;
      sums.clear();
      for (const std::int64_t end = input + args.x.block; input < end; input += kStep) {
        if constexpr (kRows == 1) {
          for (std::int64_t i = 0; i < Format::kStepBytes; i += kUnitBytes) __builtin_prefetch(codes + kAheadBytes + i);
        }
        sums.add(format, codes, first_vector, tile.x, input);
        codes += Format::kStepBytes;
      }
      const std::int64_t at = block / per_scale * kGroupRows + 4 * first_vector;
      repeat<kVectors>([&](auto v) {
        const float32x4_t scales = values_at(group.scales, group.value_dtype, at + 4 * v);
        repeat<kRows>([&](auto m) {
          float32x4_t& result = results[m * kVectors + v];
          const float32x4_t dots = vcvtq_f32_s32(sums.total(m, v));
          result = vfmaq_f32(result, dots, vmulq_n_f32(scales, tile.scales[m][block]));
          if (group.minimums != nullptr) {
            const float32x4_t minimums = values_at(group.minimums, group.value_dtype, at + 4 * v);
            result = vfmaq_n_f32(result, minimums, tile.block_sums[m][block]);
          }
        });
      });
    }
    repeat<kRows>([&](auto m) {
      repeat<kVectors>([&](auto v) {
        store(args, group, 4 * (first_vector + v), results[m * kVectors + v], tile.out[m]);
      });
    });
  }

  // `rows` rows of x, at most kRows, by a group.
  template <int kRows>
  static void run_rows(const ArrangedLinearArgs& args, const Format& format, const Group& group,
                       std::int64_t per_scale, std::int64_t first_row, std::int64_t rows) {
    if (rows == kRows) {
      constexpr int kVectors = Products::vectors(kRows);
      const Tile<kRows> tile = tile_at<kRows>(args, first_row, group.first_output);
      for (int v = 0; v < kGroupVectors; v += kVectors) {
        run_vectors<kRows, kVectors>(args, format, group, per_scale, tile, v);
      }
    } else if constexpr (kRows > 1) {
      run_rows<kRows - 1>(args, format, group, per_scale, first_row, rows);
    }
  }

  template <class Matrix>
  static void run(const ArrangedLinearArgs& args, const Matrix& weight, Range groups) {
    const Format format(weight);
    const std::int64_t per_scale = weight.block_size / args.x.block;
    const std::int64_t tiles = (args.rows + Products::kMostRows - 1) / Products::kMostRows;
    for (std::int64_t g = groups.begin; g < groups.end; g++) {
      const Group group = group_at(weight, g);
      // As even as can be: small tiles decode the same codes for fewer rows.
      for (std::int64_t t = 0; t < tiles; t++) {
        const std::int64_t row = args.rows * t / tiles;
        run_rows<Products::kMostRows>(args, format, group, per_scale, row, args.rows * (t + 1) / tiles - row);
      }
    }
  }
};

}  // namespace
}  // namespace shardloom
