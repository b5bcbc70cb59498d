// Linear layers for any vector type `V` (vector_avx2.h and its like).
//
// One output element is a dot product cut into chunks of kChunk inputs. Within a chunk one vector accumulator runs
// along the inputs and is folded at the end (V::sum); chunk sums are added in order, the bias last. Every path below
// computes exactly this, whatever tile an element falls into, so results are bit-identical for any number of rows and
// any split of the outputs.
//
// Two paths. Few rows: weights are decoded on the fly and used for a tile of rows at once; memory bandwidth is the
// limit. Many rows: a panel of weights is decoded to f32 once, stays in the L2 cache and is used for every row;
// arithmetic is the limit.
#pragma once

#include "numbers.h"
#include "unroll.h"

namespace shardloom {
namespace {

template <class V>
struct Linear {
  // Inputs of a chunk: kTileRows + kTileOutputs rows of this many floats fit the L1 cache.
  static constexpr std::int64_t kChunk = 1024;
  // A tile needs kTileRows * kTileOutputs accumulators, kTileRows inputs and one weight in registers.
  static constexpr int kTileRows = V::kRegisters == 32 ? 6 : V::kRegisters == 16 ? 3 : 1;
  static constexpr int kTileOutputs = 4;
  // From this many rows on, decoding into a panel pays.
  static constexpr std::int64_t kPanelFromRows = V::kRegisters == 32 ? 48 : 32;
  // From this many rows on, kBandOutputs outputs of each stream take a chunk before any of them takes the next one, so that
  // the chunk of x stays in the L1 cache. With fewer rows, weights had better be read in order.
  static constexpr std::int64_t kBandFromRows = V::kRegisters == 32 ? 3 : kTileRows + 1;
  static constexpr std::int64_t kBandOutputs = 64;
  // Panel rows start a cache line apart from a power of two, so that they do not compete for the same cache sets.
  static constexpr std::int64_t kPanelStride = kChunk + 16;
  static constexpr std::int64_t kPanelRows = V::kRegisters == 32 ? 120 : 64;
  static constexpr std::int64_t kBlockPanels = 4;
  static_assert(kPanelRows * kPanelStride * sizeof(float) <= kWorkspaceBytes);
  static constexpr std::int64_t kLineBytes = 64;
  // How far ahead weights are read from memory, and from a panel. Streams often stand a multiple of 4096 bytes apart, so
  // what is ahead shares the sets of the L1 cache with what is in use: 4096 bytes ahead, they push each other out.
  static constexpr int kMemoryAheadBytes = 2048;
  static constexpr int kPanelAheadBytes = 256;

  template <class T>
  static constexpr std::int64_t elements_of(std::int64_t bytes) {
    return bytes / static_cast<std::int64_t>(sizeof(T));
  }

  // Sums are folded four at a time.
  static constexpr int sum_slots(int sums) { return (sums + 3) / 4 * 4; }

  // Inputs of the chunk that begins at `input`.
  static std::int64_t chunk_at(const LinearArgs& args, std::int64_t input) {
    return args.inputs - input < kChunk ? args.inputs - input : kChunk;
  }

  // Calls work(k) for the first input k of each chunk; once without inputs, since outputs are still their bias.
  template <class Work>
  static void for_each_chunk(const LinearArgs& args, Work work) {
    std::int64_t k = 0;
    do {
      work(k);
      k += kChunk;
    } while (k < args.inputs);
  }

  // A tile of outputs, over one chunk of inputs.
  struct Tile {
    std::int64_t row;
    std::int64_t rows;
    std::int64_t output;
    std::int64_t input;
    std::int64_t inputs;
  };

  // Where the weights of a tile are: rows `stride` elements apart, which belong to outputs `step` apart. The same inputs
  // of the next output are `next_row` elements further.
  template <class T>
  struct Source {
    const T* weights;
    std::int64_t stride;
    std::int64_t step;
    std::int64_t next_row;
  };
  // Instead of a distance in bytes: the same inputs of the next output are read ahead.
  static constexpr int kNextRow = 0;

  // sums[m * N + n] = dot product of the chunk of row m of x with weight row n.
  template <int M, int N, int kAheadBytes, class T>
  static inline void multiply(const float* x, std::int64_t x_stride, const Source<T>& source, std::int64_t inputs,
                              float* sums) {
    constexpr std::int64_t kLine = elements_of<T>(kLineBytes);
    const float* x_rows[M];
    const T* w_rows[N];
    V acc[sum_slots(M * N)];
    repeat<M>([&](auto m) { x_rows[m] = x + m * x_stride; });
    repeat<N>([&](auto n) { w_rows[n] = source.weights + n * source.stride; });
    repeat<sum_slots(M * N)>([&](auto i) { acc[i] = V::zero(); });
    const std::int64_t ahead = kAheadBytes == kNextRow ? source.next_row : elements_of<T>(kAheadBytes);
    // One vector of inputs, loaded by `load`.
    const auto step = [&](std::int64_t k, auto load) __attribute__((always_inline)) {
      V in[M];
      repeat<M>([&](auto m) { in[m] = V::kept(load(x_rows[m] + k)); });
      repeat<N>([&](auto n) {
        const V weight = load(w_rows[n] + k);
        repeat<M>([&](auto m) { acc[m * N + n] = V::fma(in[m], weight, acc[m * N + n]); });
      });
    };
    const auto whole = [](auto* p) { return V::load(p); };
    std::int64_t k = 0;
    for (; k + kLine <= inputs; k += kLine) {
      repeat<N>([&](auto n) { __builtin_prefetch(w_rows[n] + k + ahead); });
      repeat<kLine / V::kLanes>([&](auto i) { step(k + i * V::kLanes, whole); });
    }
    for (; k + V::kLanes <= inputs; k += V::kLanes) step(k, whole);
    if (k < inputs) step(k, [rest = inputs - k](auto* p) { return V::load_first(p, rest); });
    repeat<sum_slots(M * N) / 4>([&](auto i) {
      V::sum4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3], sums + 4 * i);
    });
  }

  // Adds the chunk to M rows by N outputs; the first chunk begins them and the last one adds the bias. `kStep` is the
  // distance of the outputs where it is known, else 0.
  template <int M, int N, int kStep, int kAheadBytes, class T>
  static void add_tile(const LinearArgs& args, const Tile& tile, const Source<T>& source) {
    const std::int64_t step = kStep != 0 ? kStep : source.step;
    float sums[sum_slots(M * N)];
    const float* x = args.x + tile.row * args.x_stride + tile.input;
    multiply<M, N, kAheadBytes>(x, args.x_stride, source, tile.inputs, sums);
    float* out = args.out + tile.row * args.out_stride + tile.output;
    if (tile.input > 0) {
      for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) sums[m * N + n] = out[m * args.out_stride + n * step] + sums[m * N + n];
      }
    }
    if (args.bias != nullptr && tile.input + tile.inputs == args.inputs) {
      for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) sums[m * N + n] += args.bias[tile.output + n * step];
      }
    }
    for (int m = 0; m < M; m++) {
      for (int n = 0; n < N; n++) out[m * args.out_stride + n * step] = sums[m * N + n];
    }
  }

  // The same for tile.rows rows, at most M.
  template <int M, int N, int kStep, int kAheadBytes, class T>
  static void add_rows(const LinearArgs& args, const Tile& tile, const Source<T>& source) {
    if (tile.rows == M) {
      add_tile<M, N, kStep, kAheadBytes>(args, tile, source);
    } else if constexpr (M > 1) {
      add_rows<M - 1, N, kStep, kAheadBytes>(args, tile, source);
    }
  }

  // Calls work(row, rows) for tiles of at most kTileRows rows, as even as can be: a small one wastes registers.
  template <class Work>
  static void for_each_row_tile(const LinearArgs& args, Work work) {
    const std::int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
    std::int64_t row = 0;
    for (std::int64_t t = 1; t <= tiles; t++) {
      const std::int64_t end = args.rows * t / tiles;
      work(row, end - row);
      row = end;
    }
  }

  // All rows of x by N outputs that are `step` apart, over the chunk that begins at `input`.
  template <int N, int kAheadBytes, class T>
  static void few_rows_tile(const LinearArgs& args, std::int64_t output, std::int64_t step, std::int64_t input) {
    const T* w = static_cast<const T*>(args.weight) + output * args.inputs + input;
    const Source<T> source = {w, step * args.inputs, step, args.inputs};
    for_each_row_tile(args, [&](std::int64_t row, std::int64_t rows) {
      const Tile tile = {row, rows, output, input, chunk_at(args, input)};
      add_rows<kTileRows, N, 0, kAheadBytes>(args, tile, source);
    });
  }

  // Outputs [begin, end) of each of kTileOutputs streams that are `step` apart.
  template <int kAheadBytes, class T>
  static void band(const LinearArgs& args, std::int64_t begin, std::int64_t end, std::int64_t step) {
    for_each_chunk(args, [&](std::int64_t k) {
      for (std::int64_t n = begin; n < end; n++) few_rows_tile<kTileOutputs, kAheadBytes, T>(args, n, step, k);
    });
  }

  // Outputs far apart make kTileOutputs sequential streams, which memory serves better than neighbouring rows.
  template <class T>
  static void few_rows(const LinearArgs& args, Range outputs) {
    const std::int64_t step = (outputs.end - outputs.begin) / kTileOutputs;
    const std::int64_t streams_end = outputs.begin + step;
    if (args.rows < kBandFromRows || args.rows > kTileRows) {
      for (std::int64_t n = outputs.begin; n < streams_end; n++) band<kMemoryAheadBytes, T>(args, n, n + 1, step);
    } else {
      for (std::int64_t n = outputs.begin; n < streams_end; n += kBandOutputs) {
        const std::int64_t end = n + kBandOutputs < streams_end ? n + kBandOutputs : streams_end;
        band<kNextRow, T>(args, n, end, step);
      }
    }
    for (std::int64_t n = outputs.begin + kTileOutputs * step; n < outputs.end; n++) {
      for_each_chunk(args, [&](std::int64_t k) { few_rows_tile<1, kMemoryAheadBytes, T>(args, n, 1, k); });
    }
  }

  // Decodes `count` weights of one row to f32, reading ahead in the row that comes two later.
  template <class T>
  static void decode_row(float* out, const T* w, std::int64_t count, std::int64_t ahead) {
    constexpr std::int64_t kLine = elements_of<T>(kLineBytes);
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
  struct DenseRows {
    const T* weight;
    std::int64_t inputs;

    // out[k] = element input + k of row `output`, for k in [0, count).
    void decode(float* out, std::int64_t output, std::int64_t input, std::int64_t count) const {
      decode_row(out, weight + output * inputs + input, count, 2 * inputs);
    }
  };

  // All rows of x by the outputs of a panel that holds the chunk which begins at `input`.
  static void multiply_panel(const LinearArgs& args, const float* panel, Range outputs, std::int64_t input) {
    for_each_row_tile(args, [&](std::int64_t row, std::int64_t rows) {
      Tile tile = {row, rows, outputs.begin, input, chunk_at(args, input)};
      Source<float> source = {panel, kPanelStride, 1, kPanelStride};
      for (; tile.output + kTileOutputs <= outputs.end; tile.output += kTileOutputs) {
        add_rows<kTileRows, kTileOutputs, 1, kPanelAheadBytes>(args, tile, source);
        source.weights += kTileOutputs * kPanelStride;
      }
      for (; tile.output < outputs.end; tile.output++) {
        add_rows<kTileRows, 1, 1, kPanelAheadBytes>(args, tile, source);
        source.weights += kPanelStride;
      }
    });
  }

  // All rows of x by weights of any format that can decode a part of a row to f32, as DenseRows does.
  template <class Rows>
  static void panels(const LinearArgs& args, const Rows& weights, Range outputs) {
    for (std::int64_t output = outputs.begin; output < outputs.end; output += kBlockPanels * kPanelRows) {
      const std::int64_t end = output + kBlockPanels * kPanelRows;
      block(args, weights, {output, end < outputs.end ? end : outputs.end});
    }
  }

  // A chunk of x serves a few panels before the next one is read, for all of x may not fit the cache; not all panels, for
  // their sums, rows far apart in memory, should.
  template <class Rows>
  static void block(const LinearArgs& args, const Rows& weights, Range outputs) {
    float* panel = static_cast<float*>(args.workspace);
    for_each_chunk(args, [&](std::int64_t k) {
      for (std::int64_t output = outputs.begin; output < outputs.end; output += kPanelRows) {
        const std::int64_t end = output + kPanelRows < outputs.end ? output + kPanelRows : outputs.end;
        for (std::int64_t n = output; n < end; n++) {
          weights.decode(panel + (n - output) * kPanelStride, n, k, chunk_at(args, k));
        }
        multiply_panel(args, panel, {output, end}, k);
      }
    });
  }

  static void run(const LinearArgs& args, Range outputs) {
    with_float_type(args.weight_dtype, [&](auto* type) {
      using T = std::remove_cvref_t<decltype(*type)>;
      if (args.rows < kPanelFromRows) {
        few_rows<T>(args, outputs);
      } else {
        panels(args, DenseRows<T>{static_cast<const T*>(args.weight), args.inputs}, outputs);
      }
    });
  }
};

}  // namespace
}  // namespace shardloom
