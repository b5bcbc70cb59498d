// Linear layers and embedding lookup for weights whose codes share a scale in blocks of inputs, for any vector type `V`.
//
// Every element has the value that kernels.h defines for its format, and sums run as in linear_simd.h, so an output has
// the bits that the dequantized weight in f32 gives. The same two paths: few rows decode codes in registers, once for
// all rows, as sequential streams; more rows use the panels of linear_simd.h.
//
// A format decodes codes fastest into another order of lanes than that of the inputs. So it may decode in an order of
// its own: it gives V::kLanes consecutive inputs in each vector, arranged; x is arranged in the same way beforehand, and
// accumulators are restored before they are folded.
//
// A `Format` is made from its matrix and has
//   Code                   type of the elements of `codes`
//   kCodesPerByte          1 or 2
//   kArranged              false where vectors hold inputs in order
//   kAnyInputs             true where inputs need not be a multiple of kBlockStep
//   scale(s, m)            a Scale: what decoding needs of a scale and of a minimum, which is -0 if there is none
//   decode<K>(codes, scale, out)   K consecutive elements, arranged; K is a multiple of kBlockStep
//   arrange(v), restore(v)
#pragma once

#include <type_traits>

#include "linear_simd.h"

namespace shardloom {
namespace {

template <class V, class Format>
struct BlockLinear {
  using Matrix = typename Format::Matrix;
  using Code = typename Format::Code;
  using Dense = Linear<V>;

  static constexpr std::int64_t kChunk = Dense::kChunk;
  // Bytes of codes and scales that a stream reads ahead.
  static constexpr std::int64_t kPrefetchBytes = 2048;
  static constexpr std::int64_t kPrefetchScales = 64;

  static constexpr int vectors(int inputs) { return inputs / V::kLanes; }

  static const Code* codes_at(const Matrix& weight, std::int64_t row, std::int64_t input) {
    return weight.codes + (row * weight.inputs + input) / Format::kCodesPerByte;
  }

  // Walks along the scales of rows as inputs go by.
  struct BlockPosition {
    std::int64_t block;
    std::int64_t left;  // inputs that remain in the block

    BlockPosition(const Matrix& weight, std::int64_t input)
        : block(input / weight.block_size), left((block + 1) * weight.block_size - input) {}

    void advance(const Matrix& weight, std::int64_t inputs) {
      left -= inputs;
      block += left == 0 ? 1 : 0;
      left = left == 0 ? weight.block_size : left;
    }
  };

  static float value_at(const void* values, DType dtype, std::int64_t at) {
    return dtype == DType::f16 ? V::widened(static_cast<const f16*>(values)[at])
                               : static_cast<const float*>(values)[at];
  }

  static typename Format::Scale scale_at(const Format& format, const Matrix& weight, std::int64_t row,
                                         std::int64_t block) {
    const std::int64_t at = row * (weight.inputs / weight.block_size) + block;
    // Adding -0 changes no number.
    const float minimum = weight.minimums == nullptr ? -0.0f : value_at(weight.minimums, weight.value_dtype, at);
    return format.scale(value_at(weight.scales, weight.value_dtype, at), minimum);
  }

  // sums[m * N + n] = dot product of `count` inputs from `input` on of row m of x with weight row `row + n * step`. x
  // points at the first of these inputs and is arranged. Scales hold for a multiple of kRun inputs.
  template <int M, int N, int kRun>
  static inline void dot_chunk(const Format& format, const Matrix& weight, std::int64_t row, std::int64_t step,
                               std::int64_t input, std::int64_t count, const float* x, std::int64_t x_stride,
                               float (&sums)[Dense::sum_slots(M * N)]) {
    constexpr int kDecoded = kRun < Format::kStep ? kRun : Format::kStep;
    constexpr std::int64_t kLineInputs = Dense::kLineBytes * Format::kCodesPerByte;
    V acc[Dense::sum_slots(M * N)];
    for (V& a : acc) a = V::zero();
    BlockPosition position(weight, input);
    std::int64_t k = 0;
    for (; k + kRun <= count; k += kRun) {
      if (k % kLineInputs == 0) {
        for (int n = 0; n < N; n++) prefetch(weight, row + n * step, input + k, position.block);
      }
      typename Format::Scale scales[N];
      for (int n = 0; n < N; n++) scales[n] = scale_at(format, weight, row + n * step, position.block);
      for (std::int64_t i = k; i < k + kRun; i += kDecoded) {
        for (int n = 0; n < N; n++) {
          V w[vectors(kDecoded)];
          format.template decode<kDecoded>(codes_at(weight, row + n * step, input + i), scales[n], w);
          for (int v = 0; v < vectors(kDecoded); v++) {
            for (int m = 0; m < M; m++) {
              acc[m * N + n] = V::fma(V::load(x + m * x_stride + i + v * V::kLanes), w[v], acc[m * N + n]);
            }
          }
        }
      }
      position.advance(weight, kRun);
    }
    if constexpr (Format::kAnyInputs) {
      for (; k < count; k += V::kLanes) {
        const std::int64_t rest = count - k < V::kLanes ? count - k : V::kLanes;
        V in[M];
        for (int m = 0; m < M; m++) in[m] = V::load_first(x + m * x_stride + k, rest);
        for (int n = 0; n < N; n++) {
          const typename Format::Scale scale = scale_at(format, weight, row + n * step, position.block);
          const V w = format.decode_first(codes_at(weight, row + n * step, input + k), scale, rest);
          for (int m = 0; m < M; m++) acc[m * N + n] = V::fma(in[m], w, acc[m * N + n]);
        }
      }
    }
    for (V& a : acc) a = format.restore(a);
    for (int i = 0; i < Dense::sum_slots(M * N); i += 4) V::sum4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3], sums + i);
  }

  static void prefetch(const Matrix& weight, std::int64_t row, std::int64_t input, std::int64_t block) {
    __builtin_prefetch(reinterpret_cast<const char*>(codes_at(weight, row, input)) + kPrefetchBytes);
    const std::int64_t at = row * (weight.inputs / weight.block_size) + block + kPrefetchScales;
    __builtin_prefetch(static_cast<const char*>(weight.scales) + at * (weight.value_dtype == DType::f16 ? 2 : 4));
  }

  // The part of all inputs that x is arranged for at a time. It begins at a chunk.
  struct Span {
    const float* x;
    std::int64_t x_stride;
    std::int64_t input;
    std::int64_t inputs;
  };

  // M rows by N outputs, the outputs `step` apart, over the inputs of a span.
  template <int M, int N, int kRun>
  static void tile(const LinearArgs& args, const Format& format, const Matrix& weight, const Span& span,
                   std::int64_t output, std::int64_t step) {
    float totals[Dense::sum_slots(M * N)] = {};
    for (std::int64_t k = 0; k < span.inputs; k += kChunk) {
      const std::int64_t count = span.inputs - k < kChunk ? span.inputs - k : kChunk;
      float sums[Dense::sum_slots(M * N)];
      dot_chunk<M, N, kRun>(format, weight, output, step, span.input + k, count, span.x + k, span.x_stride, sums);
      const bool first = span.input + k == 0;
      for (int i = 0; i < M * N; i++) {
        if (k == 0 && !first) totals[i] = args.out[(i / N) * args.out_stride + output + (i % N) * step];
        totals[i] = first ? sums[i] : totals[i] + sums[i];
      }
    }
    const bool last = span.input + span.inputs == args.inputs;
    for (int i = 0; i < M * N; i++) {
      const std::int64_t column = output + (i % N) * step;
      args.out[(i / N) * args.out_stride + column] =
          last && args.bias != nullptr ? totals[i] + args.bias[column] : totals[i];
    }
  }

  // Copies `inputs` (a multiple of V::kLanes) of M rows, arranged, into the workspace.
  template <int M>
  static Span arrange(const LinearArgs& args, const Format& format, std::int64_t input, std::int64_t inputs) {
    // Rows start a cache line apart from a power of two, so that they do not compete for the same cache sets.
    const std::int64_t stride = inputs + 16;
    float* to = static_cast<float*>(args.workspace);
    for (int m = 0; m < M; m++) {
      const float* from = args.x + m * args.x_stride + input;
      for (std::int64_t k = 0; k < inputs; k += V::kLanes) format.arrange(V::load(from + k)).store(to + m * stride + k);
    }
    return {to, stride, input, inputs};
  }

  // All M rows: kStreams streams of consecutive outputs side by side, then what is left over one by one.
  template <int M, int kRun>
  static void direct(const LinearArgs& args, const Format& format, const Matrix& weight, Range outputs) {
    constexpr std::int64_t kMostInputs =
        (static_cast<std::int64_t>(kWorkspaceBytes / sizeof(float)) / M - 16) / kChunk * kChunk;
    constexpr int kStreams = Format::template streams<M>();
    const std::int64_t step = (outputs.end - outputs.begin) / kStreams;
    const std::int64_t most = Format::kArranged ? kMostInputs : args.inputs;
    std::int64_t input = 0;
    do {
      const std::int64_t inputs = args.inputs - input < most ? args.inputs - input : most;
      const Span span = Format::kArranged ? arrange<M>(args, format, input, inputs)
                                          : Span{args.x + input, args.x_stride, input, inputs};
      for (std::int64_t i = 0; i < step; i++) {
        tile<M, kStreams, kRun>(args, format, weight, span, outputs.begin + i, step);
      }
      for (std::int64_t n = outputs.begin + kStreams * step; n < outputs.end; n++) {
        tile<M, 1, kRun>(args, format, weight, span, n, 0);
      }
      input += most;
    } while (input < args.inputs);
  }

  // out[k] = element input + k of a row, for k in [0, count), in the order of the inputs.
  template <int kRun>
  static void decode_row(float* out, const Format& format, const Matrix& weight, std::int64_t row, std::int64_t input,
                         std::int64_t count) {
    constexpr int kDecoded = kRun < Format::kStep ? kRun : Format::kStep;
    constexpr std::int64_t kLineInputs = Dense::kLineBytes * Format::kCodesPerByte;
    BlockPosition position(weight, input);
    std::int64_t k = 0;
    for (; k + kRun <= count; k += kRun) {
      if (k % kLineInputs == 0) __builtin_prefetch(codes_at(weight, row + 2, input + k));
      const typename Format::Scale scale = scale_at(format, weight, row, position.block);
      for (std::int64_t i = k; i < k + kRun; i += kDecoded) {
        V w[vectors(kDecoded)];
        format.template decode<kDecoded>(codes_at(weight, row, input + i), scale, w);
        for (int v = 0; v < vectors(kDecoded); v++) format.restore(w[v]).store(out + i + v * V::kLanes);
      }
      position.advance(weight, kRun);
    }
    if constexpr (Format::kAnyInputs) {
      for (; k < count; k += V::kLanes) {
        const std::int64_t rest = count - k < V::kLanes ? count - k : V::kLanes;
        const typename Format::Scale scale = scale_at(format, weight, row, position.block);
        format.decode_first(codes_at(weight, row, input + k), scale, rest).store_first(out + k, rest);
      }
    }
  }

  template <int kRun>
  struct Source {
    const Format& format;
    const Matrix& weight;

    void decode(float* out, std::int64_t output, std::int64_t input, std::int64_t count) const {
      decode_row<kRun>(out, format, weight, output, input, count);
    }
  };

  // All args.rows rows, of which there are at most M.
  template <int M, int kRun>
  static void few_rows(const LinearArgs& args, const Format& format, const Matrix& weight, Range outputs) {
    if (args.rows == M) {
      direct<M, kRun>(args, format, weight, outputs);
    } else if constexpr (M > 1) {
      few_rows<M - 1, kRun>(args, format, weight, outputs);
    }
  }

  // Calls `work` with the largest of 64, 32 and 16 inputs that scales hold for a multiple of.
  template <class Work>
  static void with_run(const Matrix& weight, Work work) {
    // What is left over of a row that is one block is decoded apart, where the format allows such rows.
    if (weight.block_size % 64 == 0 || (Format::kAnyInputs && weight.block_size == weight.inputs)) {
      work(std::integral_constant<int, 64>());
    } else if (weight.block_size % 32 == 0) {
      work(std::integral_constant<int, 32>());
    } else {
      work(std::integral_constant<int, 16>());
    }
  }

  static void linear(const LinearArgs& args, const Matrix& weight, Range outputs) {
    const Format format(weight);
    with_run(weight, [&](auto run) {
      constexpr int kRun = decltype(run)::value;
      if (args.rows <= Dense::kTileRows) {
        few_rows<Dense::kTileRows, kRun>(args, format, weight, outputs);
      } else {
        Dense::panels(args, Source<kRun>{format, weight}, outputs);
      }
    });
  }

  static void embedding(const EmbeddingArgs& args, const Matrix& table, Range rows) {
    const Format format(table);
    with_run(table, [&](auto run) {
      for (std::int64_t m = rows.begin; m < rows.end; m++) {
        float* out = args.out + m * args.out_stride;
        const std::int64_t index = args.ids[m] - args.first_id;
        if (index >= 0 && index < args.id_count) {
          decode_row<decltype(run)::value>(out, format, table, index, 0, args.width);
        } else {
          std::memset(out, 0, static_cast<std::size_t>(args.width) * sizeof(float));
        }
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
