// Linear layers for any vector type `V` (vector_avx2.h, vector_avx512.h).
//
// One output element is a dot product cut into chunks of kChunk inputs. Within a chunk one vector accumulator runs
// along the inputs and is folded at the end (V::sum); chunk sums are added in order, the bias last. Every path below
// computes exactly this, whatever tile an element falls into, so results are bit-identical for any number of rows and
// any split of the outputs.
//
// Two paths. Few rows: weights are decoded on the fly and used for all rows at once, read as kStreams sequential
// streams with prefetch; memory bandwidth is the limit. More rows: a panel of weights is decoded to f32 once, stays in
// the L2 cache and is used for every row; arithmetic is the limit.
#pragma once

#include "numbers.h"

namespace shardloom {
namespace {

template <class V>
struct Linear {
  // Inputs of a chunk: kTileRows + kTileOutputs rows of this many floats fit the L1 cache.
  static constexpr std::int64_t kChunk = 1024;
  // A tile needs kTileRows * kTileOutputs accumulators, kTileRows inputs and one weight in registers.
  static constexpr int kTileRows = V::kRegisters == 32 ? 6 : 3;
  static constexpr int kTileOutputs = 4;
  // Panel rows start a cache line apart from a power of two, so that they do not compete for the same cache sets.
  static constexpr std::int64_t kPanelStride = kChunk + 16;
  static constexpr std::int64_t kPanelRows = V::kRegisters == 32 ? 96 : 64;
  static_assert(kPanelRows * kPanelStride * sizeof(float) <= kWorkspaceBytes);
  static constexpr std::int64_t kPrefetchBytes = 4096;
  static constexpr std::int64_t kLineBytes = 64;

  // Inputs of the chunk that begins at `input`.
  static std::int64_t chunk_at(const LinearArgs& args, std::int64_t input) {
    return args.inputs - input < kChunk ? args.inputs - input : kChunk;
  }

  // Sums are folded four at a time.
  static constexpr int sum_slots(int sums) { return (sums + 3) / 4 * 4; }

  // sums[m * N + n] = dot product of `count` inputs of row m of x with row n of w. `kStreamed` weights come from memory.
  template <int M, int N, bool kStreamed, class T>
  static inline void dot_chunk(const float* x, std::int64_t x_stride, const T* w, std::int64_t w_stride,
                               std::int64_t count, float (&sums)[sum_slots(M * N)]) {
    constexpr std::int64_t kLine = kLineBytes / static_cast<std::int64_t>(sizeof(T));
    constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(T));
    V acc[sum_slots(M * N)];
    for (V& a : acc) a = V::zero();
    std::int64_t k = 0;
    for (; k + kLine <= count; k += kLine) {
      if constexpr (kStreamed) {
        for (int n = 0; n < N; n++) __builtin_prefetch(w + n * w_stride + k + kAhead);
      }
      for (std::int64_t i = k; i < k + kLine; i += V::kLanes) {
        V in[M];
        for (int m = 0; m < M; m++) in[m] = V::load(x + m * x_stride + i);
        for (int n = 0; n < N; n++) {
          const V weight = V::load(w + n * w_stride + i);
          for (int m = 0; m < M; m++) acc[m * N + n] = V::fma(in[m], weight, acc[m * N + n]);
        }
      }
    }
    for (; k < count; k += V::kLanes) {
      const std::int64_t rest = count - k < V::kLanes ? count - k : V::kLanes;
      V in[M];
      for (int m = 0; m < M; m++) in[m] = V::load_first(x + m * x_stride + k, rest);
      for (int n = 0; n < N; n++) {
        const V weight = V::load_first(w + n * w_stride + k, rest);
        for (int m = 0; m < M; m++) acc[m * N + n] = V::fma(in[m], weight, acc[m * N + n]);
      }
    }
    for (int i = 0; i < sum_slots(M * N); i += 4) V::sum4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3], sums + i);
  }

  // M rows by N outputs, the outputs `output_step` apart, over all inputs.
  template <int M, int N, class T>
  static void direct_tile(const LinearArgs& args, std::int64_t output, std::int64_t output_step) {
    const T* w = static_cast<const T*>(args.weight) + output * args.inputs;
    const std::int64_t w_stride = output_step * args.inputs;
    float totals[sum_slots(M * N)];
    dot_chunk<M, N, true>(args.x, args.x_stride, w, w_stride, chunk_at(args, 0), totals);
    for (std::int64_t k = kChunk; k < args.inputs; k += kChunk) {
      float sums[sum_slots(M * N)];
      dot_chunk<M, N, true>(args.x + k, args.x_stride, w + k, w_stride, chunk_at(args, k), sums);
      for (int i = 0; i < M * N; i++) totals[i] += sums[i];
    }
    for (int m = 0; m < M; m++) {
      for (int n = 0; n < N; n++) {
        const std::int64_t column = output + n * output_step;
        const float total = totals[m * N + n];
        args.out[m * args.out_stride + column] = args.bias == nullptr ? total : total + args.bias[column];
      }
    }
  }

  // All M rows: kStreams streams of consecutive outputs side by side, then what is left over one by one.
  template <int M, class T>
  static void direct(const LinearArgs& args, Range outputs) {
    constexpr int kStreams = M * 8 <= kTileRows * kTileOutputs ? 8 : 4;
    const std::int64_t step = (outputs.end - outputs.begin) / kStreams;
    for (std::int64_t i = 0; i < step; i++) direct_tile<M, kStreams, T>(args, outputs.begin + i, step);
    for (std::int64_t n = outputs.begin + kStreams * step; n < outputs.end; n++) direct_tile<M, 1, T>(args, n, 0);
  }

  // One chunk of a panel: where it lies among the inputs and outputs.
  struct Panel {
    const float* weights;  // rows kPanelStride apart
    std::int64_t output;
    std::int64_t outputs;
    std::int64_t input;
    std::int64_t inputs;
  };

  template <int M, int N>
  static void panel_tile(const LinearArgs& args, const Panel& panel, std::int64_t row, std::int64_t n) {
    float sums[sum_slots(M * N)];
    dot_chunk<M, N, false>(args.x + row * args.x_stride + panel.input, args.x_stride, panel.weights + n * kPanelStride,
                           kPanelStride, panel.inputs, sums);
    const bool first = panel.input == 0;
    const bool last = panel.input + panel.inputs == args.inputs;
    for (int m = 0; m < M; m++) {
      float* out = args.out + (row + m) * args.out_stride + panel.output + n;
      for (int j = 0; j < N; j++) {
        float total = sums[m * N + j];
        if (!first) total = out[j] + total;
        if (last && args.bias != nullptr) total = total + args.bias[panel.output + n + j];
        out[j] = total;
      }
    }
  }

  // M rows by all outputs of the panel.
  template <int M>
  static void panel_rows(const LinearArgs& args, const Panel& panel, std::int64_t row) {
    std::int64_t n = 0;
    for (; n + kTileOutputs <= panel.outputs; n += kTileOutputs) panel_tile<M, kTileOutputs>(args, panel, row, n);
    for (; n < panel.outputs; n++) panel_tile<M, 1>(args, panel, row, n);
  }

  // Decodes `count` weights of one row to f32, reading ahead in the row that comes two later.
  template <class T>
  static void decode_row(float* out, const T* w, std::int64_t count, std::int64_t ahead) {
    constexpr std::int64_t kLine = kLineBytes / static_cast<std::int64_t>(sizeof(T));
    std::int64_t k = 0;
    for (; k + kLine <= count; k += kLine) {
      __builtin_prefetch(w + k + ahead);
      for (std::int64_t i = k; i < k + kLine; i += V::kLanes) V::load(w + i).store(out + i);
    }
    for (; k < count; k += V::kLanes) {
      const std::int64_t rest = count - k < V::kLanes ? count - k : V::kLanes;
      V::load_first(w + k, rest).store_first(out + k, rest);
    }
  }

  // Where the panels of a dense weight come from.
  template <class T>
  struct DenseSource {
    const T* weight;
    std::int64_t inputs;

    // out[k] = element input + k of row `output`, for k in [0, count).
    void decode(float* out, std::int64_t output, std::int64_t input, std::int64_t count) const {
      decode_row(out, weight + output * inputs + input, count, 2 * inputs);
    }
  };

  template <class Source>
  static Panel decode_panel(const LinearArgs& args, const Source& source, std::int64_t output, std::int64_t outputs,
                            std::int64_t input) {
    const std::int64_t inputs = chunk_at(args, input);
    float* weights = static_cast<float*>(args.workspace);
    for (std::int64_t n = 0; n < outputs; n++) source.decode(weights + n * kPanelStride, output + n, input, inputs);
    return {weights, output, outputs, input, inputs};
  }

  template <class Source>
  static void panels(const LinearArgs& args, const Source& source, Range outputs) {
    for (std::int64_t output = outputs.begin; output < outputs.end; output += kPanelRows) {
      const std::int64_t count = outputs.end - output < kPanelRows ? outputs.end - output : kPanelRows;
      std::int64_t input = 0;
      do {
        const Panel panel = decode_panel(args, source, output, count, input);
        std::int64_t row = 0;
        for (; row + kTileRows <= args.rows; row += kTileRows) panel_rows<kTileRows>(args, panel, row);
        if (row < args.rows) rest_rows<kTileRows - 1>(args, panel, row);
        input += kChunk;
      } while (input < args.inputs);
    }
  }

  // The last args.rows - row rows, of which there are at most M.
  template <int M>
  static void rest_rows(const LinearArgs& args, const Panel& panel, std::int64_t row) {
    if (args.rows - row == M) {
      panel_rows<M>(args, panel, row);
    } else if constexpr (M > 1) {
      rest_rows<M - 1>(args, panel, row);
    }
  }

  // All args.rows rows, of which there are at most M.
  template <int M, class T>
  static void few_rows(const LinearArgs& args, Range outputs) {
    if (args.rows == M) {
      direct<M, T>(args, outputs);
    } else if constexpr (M > 1) {
      few_rows<M - 1, T>(args, outputs);
    }
  }

  static void run(const LinearArgs& args, Range outputs) {
    with_float_type(args.weight_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      if (args.rows <= kTileRows) {
        few_rows<kTileRows, T>(args, outputs);
      } else {
        panels(args, DenseSource<T>{static_cast<const T*>(args.weight), args.inputs}, outputs);
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
