// The compute kernels: what each one is given, and the table of one implementation of all of them.
//
// Kernels know no Node-API, no handle and no thread. They trust their arguments: whoever calls them has checked every
// extent, every index and every block number. Meanings and shapes are those of src/kernels/kernels.ts.
//
// Conventions
// - Matrices are row-major; a stride counts elements from one row to the next and is at least the width.
// - Pointers are aligned to their elements and no further, though 64 bytes are faster: kernels use unaligned loads.
// - `out` overlaps no input unless its comment says so.
// - Each kernel does the part of its work that `range` names, so that threads can share a call. The parts are
//   independent: no result depends on how the whole was cut.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../dtype.h"
#include "../range.h"

namespace shardloom {

// Bits of 16-bit floats. Plain data: conversions belong to the files that know an instruction set.
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

// out[m][n] = sum_k x[m][k] * weight[n][k] + bias[n]. The sum of one element runs in an order that depends on
// `inputs` and the instruction set only, never on `rows`, on `range` or on the format of the weight: a weight in another
// format gives the bits that its dequantized values in f32 give.
struct LinearArgs {
  float* out;
  std::int64_t out_stride;
  const float* x;
  std::int64_t x_stride;
  const void* weight;   // [outputs, inputs], contiguous; null where the weight comes as a matrix of another format
  DType weight_dtype;   // f32, f16 or bf16
  const float* bias;    // [outputs] or null
  std::int64_t rows;
  std::int64_t inputs;
  void* workspace;      // kWorkspaceBytes, of the calling thread
};

// The same with x in bf16 as well. A sum is cut into chunks of 2048 inputs. Within one, lane l of 16 adds up the pairs of
// inputs l, l + 16, ..: of each pair the second product first, each with one rounding (fused). Lanes i and i + 8 are added,
// then i and i + 4, + 2, + 1; chunks in order, the bias last. Subnormal operands and results are zeros of their sign. So
// an element has the same bits for any number of rows, any range and any instruction set.
struct Bf16LinearArgs {
  float* out;
  std::int64_t out_stride;
  const bf16* x;
  std::int64_t x_stride;  // even
  const bf16* weight;     // [outputs, inputs], contiguous
  const float* bias;      // [outputs] or null
  std::int64_t rows;
  std::int64_t inputs;    // even
  void* workspace;        // kWorkspaceBytes, of the calling thread
};

// Element c of a row is codebook[code] * scales[c / block_size] + minimums[c / block_size], each operation rounded. Scales and
// minimums are f32 or f16, as the checkpoint has them; f16 is widened, which is exact.
struct Code4Matrix {
  const std::uint8_t* codes;  // [outputs, inputs / 2], the even input in the high half of a byte
  const float* codebook;      // [16]
  const void* scales;         // [outputs, inputs / block_size]
  const void* minimums;       // the same, or null
  DType value_dtype;          // of scales and minimums: f32 or f16
  std::int64_t inputs;
  std::int64_t block_size;    // a multiple of kBlockStep that divides the inputs
};

// Element c of a row is code * scales[c / block_size] * multiplier + minimums[c / block_size], each operation rounded.
struct Int8Matrix {
  const std::int8_t* codes;   // [outputs, inputs]
  const void* scales;         // [outputs, inputs / block_size]
  const void* minimums;       // the same, or null
  DType value_dtype;          // of scales and minimums: f32 or f16
  std::int64_t inputs;
  std::int64_t block_size;    // `inputs`, or a multiple of kBlockStep that divides them
  float multiplier;
};

inline constexpr std::int64_t kBlockStep = 16;

// Rows of x rounded to whole numbers, in blocks of inputs: x[m][k] is about codes[m][k] * step, a step a block. int16 codes
// lie in the order of kPairOrder (arranged_layout.h), int8 codes in that of the inputs.
struct QuantizedRows {
  void* codes;                // [rows, inputs]
  std::int64_t code_stride;   // bytes from one row to the next, a multiple of 64
  float* scales;              // [rows, blocks]: a block's step times QuantizeArgs::factor
  float* sums;                // [rows, blocks]: the sum of a block's codes times its step
  std::int32_t* starts;       // [rows, blocks]: QuantizeArgs::offset times the sum of a block's codes
  std::int64_t blocks;
  std::int64_t block;         // inputs of a block: 16, 32 or 64
};

// A block's step is its largest magnitude / limit, for codes of 16 bits rounded up to a power of two, and a code is x / step to
// the nearest, ties to even. A block whose
// largest magnitude is below kLeastMagnitude counts as zeros; one that holds NaN or infinity gets NaN for a step and zeros.
struct QuantizeArgs {
  const float* x;
  std::int64_t x_stride;
  std::int64_t inputs;
  std::int32_t limit;         // kInt8Limit for int8 codes
  float factor;               // what the codes of the weight are to be multiplied with beside their scale
  std::int32_t offset;        // the least code of the weight: CodeSteps::least of its codebook, or kInt8Offset
  QuantizedRows out;
};

inline constexpr float kLeastMagnitude = 0x1p-100f;
inline constexpr std::int32_t kInt8Limit = 127;
inline constexpr std::int32_t kInt8Offset = -128;
// Sums of a block of at most 64 products fit into 32 bits: 64 * 4096 * 8191 and 64 * 128 * 32767 are below 2^31.
inline constexpr std::int32_t kCodebook16Limit = 4096;
inline constexpr std::int32_t kCodebook8Limit = 127;
inline constexpr std::int32_t kInt16LimitOfCode4 = 8191;
inline constexpr std::int32_t kInt16LimitOfInt8 = 32767;

// A weight in groups of kGroupRows rows (arranged_layout.h). The rows that are left over, if any, are a group of their own
// that ends in rows of zeros.
struct ArrangedMatrix {
  const std::uint8_t* codes;       // [whole groups, group_bytes]
  const void* scales;              // [whole groups, inputs / block_size, kGroupRows]
  const void* minimums;            // the same, or null
  const std::uint8_t* tail_codes;  // [group_bytes]
  const void* tail_scales;         // [inputs / block_size, kGroupRows]
  const void* tail_minimums;
  DType value_dtype;               // of scales and minimums: f32 or f16
  std::int64_t outputs;
  std::int64_t inputs;             // a multiple of kBlockStep
  std::int64_t block_size;         // a multiple of kBlockStep that divides the inputs
  std::int64_t group_bytes;        // of codes
};

// A codebook as whole steps from its least entry on: entry i is least + unit * n, n at most `most`, with the largest unit.
struct CodeSteps {
  std::int32_t least;
  std::int32_t unit;
  std::int32_t most;
};

// codebook[i] is about codebook16[i] * step16 and codebook8[i] * step8.
struct ArrangedCode4 : ArrangedMatrix {
  float codebook[16];
  std::int16_t codebook16[16];  // magnitudes up to kCodebook16Limit
  std::int8_t codebook8[16];    // magnitudes up to kCodebook8Limit
  float step16;
  float step8;
  CodeSteps steps16;            // of codebook16
  CodeSteps steps8;             // of codebook8
};

struct ArrangedInt8 : ArrangedMatrix {
  float multiplier;
};

// out[m][n] = sum over blocks b of x, from the first to the last, of
//   (sum of x code * weight code) * (x.scales[m][b] * weight scale) + x.sums[m][b] * weight minimum
// + bias[n]. The sum of codes is exact; each of the two products is added with one rounding (fused). So an element has
// the same bits for any number of rows, any range and any instruction set.
struct ArrangedLinearArgs {
  float* out;
  std::int64_t out_stride;
  QuantizedRows x;
  const float* bias;    // [outputs] or null
  std::int64_t rows;
};

// out[m] = x[m] / sqrt(mean(x[m]^2) + epsilon) * weight. out may be x.
struct NormArgs {
  float* out;
  std::int64_t out_stride;
  const float* x;
  std::int64_t x_stride;
  float* residual;      // add_rms_norm only: residual[m] += x[m] first, and its norm is taken
  std::int64_t residual_stride;
  const float* weight;  // [width]
  std::int64_t width;
  float epsilon;
};

// out[i] = copy[i] = sources[0][i] + sources[1][i] + ..., in that order, each sum rounded to f32; a NaN becomes the quiet
// NaN 0x7fc00000. Sources are f32 or bf16. `out` may be an f32 source; `copy`, which may be null, is none.
struct RankSumArgs {
  float* out;
  float* copy;
  const void* const* sources;
  DType payload;
  std::int64_t ranks;
  std::int64_t own;     // the source that is in this core's cache
};

// rms_norm of each of `heads` groups of head_size columns, in place.
struct HeadNormArgs {
  float* x;             // at the first column of the first head
  std::int64_t x_stride;
  const float* weight;  // [head_size]
  std::int64_t heads;
  std::int64_t head_size;
  float epsilon;
};

// Rotates pairs (i, i + head_size / 2) of every head in place.
struct RopeArgs {
  float* x;             // at the first column of the first head
  std::int64_t x_stride;
  const std::int32_t* positions;
  const float* cos_sin;  // [positions, head_size]: head_size / 2 cosines, then as many sines
  std::int64_t heads;
  std::int64_t head_size;
};

// out[m] = table[ids[m] - first_id], or zeros where that is outside [0, id_count).
struct EmbeddingArgs {
  float* out;
  std::int64_t out_stride;
  const std::int32_t* ids;
  const void* table;    // [id_count, width]; null where the table comes as a matrix of another format
  DType table_dtype;    // f32, f16 or bf16
  std::int64_t width;
  std::int64_t first_id;
  std::int64_t id_count;
};

// out[i] = source[indices[i]], rows of `row_bytes`.
struct GatherArgs {
  std::byte* out;
  const std::byte* source;
  const std::int32_t* indices;
  std::int64_t row_bytes;
};

// Rounds kv_heads * head_size columns of source at key_column and value_column into cache slot slots[m]. In a cache of i8 a
// key or a value of a KV head is codes times a scale of its own (rounding_of in numbers.h).
struct WriteKvArgs {
  void* keys;           // [blocks, kv_heads, head_size, block_size]: a vector of positions is read as it stands
  void* values;         // [blocks, kv_heads, block_size, head_size]
  float* scales;        // [blocks, kv_heads, 2, block_size], of keys and then of values; null unless the cache is i8
  DType cache_dtype;    // f32, f16, bf16 or i8
  const float* source;
  std::int64_t source_stride;
  const std::int32_t* slots;
  std::int64_t key_column;
  std::int64_t value_column;
  std::int64_t kv_heads;
  std::int64_t head_size;
  std::int64_t block_size;
};

// Largest magnitude of a code in a cache of i8.
inline constexpr float kKvCodeLimit = 127.0f;

// The context of a sequence is cut at multiples of this many positions. Each partition has a softmax of its own, and
// those of a query are merged in order: threads can share a long context, and results do not depend on whether they do.
inline constexpr std::int64_t kAttentionPartition = 512;
// Rows (pairs of a query and a query head) of one KV head that share a tile.
inline constexpr std::int64_t kAttentionHeadRows = 48;
// What a partial result has beside its head_size sums: its largest score, and the sum of its weights.
inline constexpr std::int64_t kPartialExtra = 2;

// Where the units of a sequence begin, and where its partial results do.
struct AttentionPlan {
  std::int64_t first_unit;
  // In elements; -1 where no unit is a single partition, which attention_combine would have to put together.
  std::int64_t first_partial;
};

// Causal attention over the paged cache. The range counts the units of `plan`, whose meaning is that of
// attention_units.h; `attention_combine` then does sequences times query heads. A row's result depends on its query and on
// the keys and values it sees, never on the other queries of the step, nor on the plan.
struct AttentionArgs {
  float* out;
  std::int64_t out_stride;
  const float* q;
  std::int64_t q_stride;
  const void* keys;     // [blocks, kv_heads, head_size, block_size]
  const void* values;   // [blocks, kv_heads, block_size, head_size]
  const float* scales;  // [blocks, kv_heads, 2, block_size], of keys and then of values; null unless the cache is i8
  DType cache_dtype;    // f32, f16, bf16 or i8
  const AttentionPlan* plan;  // [sequences + 1]; the last one ends the units
  float* partials;
  const std::int32_t* kv_head_of;  // [heads], not decreasing
  const std::int32_t* query_starts;
  const std::int32_t* context_lengths;
  const std::int32_t* block_tables;
  std::int64_t block_table_stride;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_size;  // 1 .. kMaxHeadSize
  std::int64_t block_size;
  float scale;
  std::int64_t sliding_window;  // 0 for none
  float soft_cap;               // 0 for none
  void* workspace;      // kWorkspaceBytes, of the calling thread
};

// out[m][i] = silu(gate_up[m][i]) * gate_up[m][width + i]
struct SiluMulArgs {
  float* out;
  std::int64_t out_stride;
  const float* gate_up;
  std::int64_t gate_up_stride;
  std::int64_t width;
};

struct ArgmaxArgs {
  float* values;
  std::int32_t* ids;
  const float* logits;
  std::int64_t logits_stride;
  std::int64_t columns;
  std::int64_t first_id;
};

inline constexpr std::int64_t kMaxHeadSize = 512;

// Scratch memory a thread hands to the kernels that ask for it, aligned to 64 bytes.
inline constexpr std::size_t kWorkspaceBytes = 512 * 1024;

// One implementation of every kernel. The name is what SHARDLOOM_ISA calls it.
struct KernelTable {
  const char* isa;
  void (*linear)(const LinearArgs&, Range outputs);
  void (*linear_bf16)(const Bf16LinearArgs&, Range outputs);
  // Whether linear_bf16 has an instruction that multiplies and adds pairs of bf16.
  bool bf16_pairs;
  void (*linear_code4)(const LinearArgs&, const Code4Matrix&, Range outputs);
  void (*linear_int8)(const LinearArgs&, const Int8Matrix&, Range outputs);
  // Arranged weights. An x that was quantized to int16 codes is for the `int16` kernels of one format only, for its limit
  // and factor are that format's.
  void (*quantize_int16)(const QuantizeArgs&, Range rows);
  void (*quantize_int8)(const QuantizeArgs&, Range rows);
  void (*arranged_code4_int16)(const ArrangedLinearArgs&, const ArrangedCode4&, Range groups);
  void (*arranged_code4_int8)(const ArrangedLinearArgs&, const ArrangedCode4&, Range groups);
  void (*arranged_int8_int16)(const ArrangedLinearArgs&, const ArrangedInt8&, Range groups);
  void (*arranged_int8_int8)(const ArrangedLinearArgs&, const ArrangedInt8&, Range groups);
  void (*embedding_arranged_code4)(const EmbeddingArgs&, const ArrangedCode4&, Range rows);
  void (*embedding_arranged_int8)(const EmbeddingArgs&, const ArrangedInt8&, Range rows);
  void (*rms_norm)(const NormArgs&, Range rows);
  void (*add_rms_norm)(const NormArgs&, Range rows);
  void (*head_norm)(const HeadNormArgs&, Range rows);
  void (*rope)(const RopeArgs&, Range rows);
  void (*embedding)(const EmbeddingArgs&, Range rows);
  void (*embedding_code4)(const EmbeddingArgs&, const Code4Matrix&, Range rows);
  void (*embedding_int8)(const EmbeddingArgs&, const Int8Matrix&, Range rows);
  void (*gather_rows)(const GatherArgs&, Range rows);
  void (*write_kv)(const WriteKvArgs&, Range rows);
  void (*attention)(const AttentionArgs&, Range units);
  void (*attention_combine)(const AttentionArgs&, Range rows);
  void (*silu_mul)(const SiluMulArgs&, Range rows);
  void (*argmax)(const ArgmaxArgs&, Range rows);
  void (*sum_ranks)(const RankSumArgs&, Range elements);
  void (*narrow_bf16)(bf16* out, const float* x, Range elements);
};

}  // namespace shardloom
