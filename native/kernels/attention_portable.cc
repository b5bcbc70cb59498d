// Paged attention in plain C++: one query head at a time, online softmax over spans of kSpan positions.
#include <cmath>
#include <limits>

#include "numbers.h"
#include "variants.h"

namespace shardloom::portable {
namespace {

constexpr std::int64_t kSpan = 32;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// One query of one head, and the positions [first, end) that it sees.
struct Row {
  const float* q;
  float* out;
  std::int64_t first;
  std::int64_t end;
};

// Element offset in the cache of a position.
std::int64_t offset_of(const AttentionArgs& args, const std::int32_t* table, std::int64_t kv_head,
                       std::int64_t position) {
  const std::int64_t block = table[position / args.block_size];
  const std::int64_t slot = (block * args.kv_heads + kv_head) * args.block_size + position % args.block_size;
  return slot * args.head_size;
}

template <class T>
float score(const AttentionArgs& args, const float* q, const T* key) {
  float sum = 0.0f;
  for (std::int64_t d = 0; d < args.head_size; d++) sum += q[d] * to_float(key[d]);
  sum *= args.scale;
  return args.soft_cap == 0.0f ? sum : args.soft_cap * std::tanh(sum / args.soft_cap);
}

template <class T>
void attend(const AttentionArgs& args, const Row& row, const std::int32_t* table, std::int64_t kv_head) {
  const T* keys = static_cast<const T*>(args.keys);
  const T* values = static_cast<const T*>(args.values);
  float maximum = kLowest;
  float total = 0.0f;
  for (std::int64_t d = 0; d < args.head_size; d++) row.out[d] = 0.0f;
  for (std::int64_t begin = row.first; begin < row.end;) {
    const std::int64_t boundary = (begin / kSpan + 1) * kSpan;
    const std::int64_t end = boundary < row.end ? boundary : row.end;
    float scores[kSpan];
    float top = maximum;
    for (std::int64_t p = begin; p < end; p++) {
      scores[p - begin] = score(args, row.q, keys + offset_of(args, table, kv_head, p));
      if (scores[p - begin] > top) top = scores[p - begin];
    }
    const float factor = top == maximum ? 1.0f : std::exp(maximum - top);
    maximum = top;
    total *= factor;
    for (std::int64_t d = 0; d < args.head_size; d++) row.out[d] *= factor;
    for (std::int64_t p = begin; p < end; p++) {
      const float weight = std::exp(scores[p - begin] - maximum);
      const T* value = values + offset_of(args, table, kv_head, p);
      total += weight;
      for (std::int64_t d = 0; d < args.head_size; d++) row.out[d] += weight * to_float(value[d]);
    }
    begin = end;
  }
  for (std::int64_t d = 0; d < args.head_size; d++) row.out[d] /= total;
}

template <class T>
void run(const AttentionArgs& args, Range units) {
  for (std::int64_t unit = units.begin; unit < units.end; unit++) {
    const std::int64_t sequence = unit / args.kv_heads;
    const std::int64_t kv_head = unit % args.kv_heads;
    const std::int32_t* table = args.block_tables + sequence * args.block_table_stride;
    const std::int64_t start = args.query_starts[sequence];
    const std::int64_t queries = args.query_starts[sequence + 1] - start;
    for (std::int64_t i = 0; i < queries; i++) {
      const std::int64_t end = args.context_lengths[sequence] - queries + i + 1;
      const bool windowed = args.sliding_window > 0 && end > args.sliding_window;
      const std::int64_t first = windowed ? end - args.sliding_window : 0;
      for (std::int64_t h = 0; h < args.heads; h++) {
        if (args.kv_head_of[h] != kv_head) continue;
        const float* q = args.q + (start + i) * args.q_stride + h * args.head_size;
        float* out = args.out + (start + i) * args.out_stride + h * args.head_size;
        attend<T>(args, {q, out, first, end}, table, kv_head);
      }
    }
  }
}

}  // namespace

void attention(const AttentionArgs& args, Range units) {
  with_float_type(args.cache_dtype, [&](auto* type) { run<std::remove_cvref_t<decltype(*type)>>(args, units); });
}

}  // namespace shardloom::portable
