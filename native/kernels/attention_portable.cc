// Paged attention in plain C++: one query head at a time, online softmax over spans of kSpan positions in each
// partition of the context, and the partitions merged in order.
#include <cmath>
#include <limits>

#include "attention_units.h"
#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

constexpr std::int64_t kSpan = 32;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// What a row has seen so far: its largest score, the sum of its weights and its weighted sums of values.
struct State {
  float maximum;
  float total;
  float* sums;
};

// One query head, and the blocks that its keys and values are in.
struct Row {
  const float* q;
  const std::int32_t* table;
  std::int64_t kv_head;
};

// Element offset in the cache of the block of a KV head that a position is in.
std::int64_t block_of(const AttentionArgs& args, const Row& row, std::int64_t position) {
  const std::int64_t block = row.table[position / args.block_size];
  return (block * args.kv_heads + row.kv_head) * args.block_size * args.head_size;
}

// The scale of a key in a cache of i8; that of the value is block_size further.
const float* key_scale(const AttentionArgs& args, const Row& row, std::int64_t position) {
  const std::int64_t head = row.table[position / args.block_size] * args.kv_heads + row.kv_head;
  return args.scales + head * 2 * args.block_size + position % args.block_size;
}

template <class T>
float score(const AttentionArgs& args, const Row& row, std::int64_t position) {
  const T* key = static_cast<const T*>(args.keys) + block_of(args, row, position) + position % args.block_size;
  float sum = 0.0f;
  for (std::int64_t d = 0; d < args.head_size; d++) sum += row.q[d] * to_float(key[d * args.block_size]);
  if constexpr (std::is_same_v<T, std::int8_t>) sum *= *key_scale(args, row, position);
  sum *= args.scale;
  return args.soft_cap == 0.0f ? sum : args.soft_cap * std::tanh(sum / args.soft_cap);
}

void scale_by(const AttentionArgs& args, State& state, float factor) {
  state.total *= factor;
  for (std::int64_t d = 0; d < args.head_size; d++) state.sums[d] *= factor;
}

// The positions [first, end) of one partition.
template <class T>
void attend(const AttentionArgs& args, const Row& row, std::int64_t first, std::int64_t end, State& state) {
  state.maximum = kLowest;
  state.total = 0.0f;
  for (std::int64_t d = 0; d < args.head_size; d++) state.sums[d] = 0.0f;
  for (std::int64_t begin = first; begin < end;) {
    const std::int64_t boundary = (begin / kSpan + 1) * kSpan;
    const std::int64_t span_end = boundary < end ? boundary : end;
    float scores[kSpan];
    float top = state.maximum;
    for (std::int64_t p = begin; p < span_end; p++) {
      scores[p - begin] = score<T>(args, row, p);
      if (scores[p - begin] > top) top = scores[p - begin];
    }
    if (top != state.maximum) scale_by(args, state, std::exp(state.maximum - top));
    state.maximum = top;
    for (std::int64_t p = begin; p < span_end; p++) {
      float weight = std::exp(scores[p - begin] - top);
      const std::int64_t at = block_of(args, row, p) + p % args.block_size * args.head_size;
      const T* value = static_cast<const T*>(args.values) + at;
      state.total += weight;
      if constexpr (std::is_same_v<T, std::int8_t>) weight *= key_scale(args, row, p)[args.block_size];
      for (std::int64_t d = 0; d < args.head_size; d++) state.sums[d] += weight * to_float(value[d]);
    }
    begin = span_end;
  }
}

void merge(const AttentionArgs& args, State& into, const State& from) {
  const float maximum = from.maximum > into.maximum ? from.maximum : into.maximum;
  const float a = std::exp(into.maximum - maximum);
  const float b = std::exp(from.maximum - maximum);
  for (std::int64_t d = 0; d < args.head_size; d++) into.sums[d] = into.sums[d] * a + from.sums[d] * b;
  into.total = into.total * a + from.total * b;
  into.maximum = maximum;
}

// Query `query` of a piece's sequence, for one query head.
template <class T>
void attend_row(const AttentionArgs& args, const AttentionPiece& piece, std::int64_t query, std::int64_t head) {
  const std::int64_t place = args.query_starts[piece.sequence] + query;
  const Row row = {args.q + place * args.q_stride + head * args.head_size,
                   args.block_tables + piece.sequence * args.block_table_stride, args.kv_head_of[head]};
  const SeenPartitions seen(args, piece.sequence, query);
  if (is_split(args, piece.sequence)) {
    if (piece.number < seen.first || piece.number >= seen.end) return;
    float* partial = partial_of(args, piece.sequence, piece.number, query, head);
    State state = {0, 0, partial + kPartialExtra};
    attend<T>(args, row, seen.begin_of(piece.number), seen.end_of(piece.number), state);
    partial[0] = state.maximum;
    partial[1] = state.total;
    return;
  }
  State total = {0, 0, args.out + place * args.out_stride + head * args.head_size};
  attend<T>(args, row, seen.begin_of(seen.first), seen.end_of(seen.first), total);
  for (std::int64_t p = seen.first + 1; p < seen.end; p++) {
    State state = {0, 0, static_cast<float*>(args.workspace)};
    attend<T>(args, row, seen.begin_of(p), seen.end_of(p), state);
    merge(args, total, state);
  }
  for (std::int64_t d = 0; d < args.head_size; d++) total.sums[d] /= total.total;
}

template <class T>
void attend_piece(const AttentionArgs& args, const AttentionPiece& piece) {
  const std::int64_t queries = args.query_starts[piece.sequence + 1] - args.query_starts[piece.sequence];
  for (std::int64_t kv_head = piece.first_kv_head; kv_head < piece.first_kv_head + piece.kv_heads; kv_head++) {
    const Heads heads = heads_of(args, kv_head);
    const Range rows = rows_of(args, piece, queries * heads.count);
    for (std::int64_t row = rows.begin; row < rows.end; row++) {
      attend_row<T>(args, piece, row / heads.count, heads.begin + row % heads.count);
    }
  }
}

void combine_row(const AttentionArgs& args, std::int64_t sequence, std::int64_t query, std::int64_t head) {
  float* out = args.out + (args.query_starts[sequence] + query) * args.out_stride + head * args.head_size;
  const SeenPartitions seen(args, sequence, query);
  const auto state_of = [&](std::int64_t piece) {
    float* partial = partial_of(args, sequence, piece, query, head);
    return State{partial[0], partial[1], partial + kPartialExtra};
  };
  State total = state_of(seen.first);
  for (std::int64_t d = 0; d < args.head_size; d++) out[d] = total.sums[d];
  total.sums = out;
  for (std::int64_t p = seen.first + 1; p < seen.end; p++) merge(args, total, state_of(p));
  for (std::int64_t d = 0; d < args.head_size; d++) out[d] /= total.total;
}

}  // namespace

void attention(const AttentionArgs& args, Range units) {
  with_cache_type(args.cache_dtype, [&](auto* type) {
    for_each_piece(args, units, attend_piece<std::remove_cvref_t<decltype(*type)>>);
  });
}

void attention_combine(const AttentionArgs& args, Range rows) { for_each_split_row(args, rows, combine_row); }

}  // namespace shardloom::portable
