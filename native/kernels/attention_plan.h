// How a call of attention is cut into units (attention_units.h says what each of them is).
#pragma once

#include "kernels.h"

namespace shardloom {
namespace {

// Below this many units a thread, what threads get is too uneven: partitions of long contexts become units.
constexpr std::int64_t kLeastUnitsAThread = 4;

// What a plan amounts to.
struct AttentionUnits {
  std::int64_t units;
  // Elements of all partial results; 0 where attention_combine has nothing to do.
  std::int64_t partials;
};

// Query heads of the KV head that has most.
inline std::int64_t largest_group(const AttentionArgs& args) {
  std::int64_t largest = 0;
  for (std::int64_t begin = 0; begin < args.heads;) {
    std::int64_t end = begin;
    while (end < args.heads && args.kv_head_of[end] == args.kv_head_of[begin]) end++;
    largest = end - begin > largest ? end - begin : largest;
    begin = end;
  }
  return largest;
}

// Partitions that some query of a sequence sees.
inline std::int64_t partitions_of(const AttentionArgs& args, std::int64_t sequence) {
  const std::int64_t queries = args.query_starts[sequence + 1] - args.query_starts[sequence];
  const std::int64_t context = args.context_lengths[sequence];
  const std::int64_t seen = args.sliding_window == 0 ? 0 : context - queries + 1 - args.sliding_window;
  return (context - 1) / kAttentionPartition + 1 - (seen > 0 ? seen / kAttentionPartition : 0);
}

// Tiles of the rows of a KV head of a sequence.
inline std::int64_t tiles_of(const AttentionArgs& args, std::int64_t sequence, std::int64_t group) {
  const std::int64_t rows = (args.query_starts[sequence + 1] - args.query_starts[sequence]) * group;
  return (rows + kAttentionHeadRows - 1) / kAttentionHeadRows;
}

// Fills plan[0 .. sequences]. All of `args` must be set but its plan and its partials.
inline AttentionUnits plan_attention(const AttentionArgs& args, std::int64_t sequences, std::int64_t threads,
                                     AttentionPlan* plan) {
  const std::int64_t group = largest_group(args);
  std::int64_t tiles = 0;
  for (std::int64_t s = 0; s < sequences; s++) tiles += tiles_of(args, s, group);
  const bool splits = threads > 1 && tiles * args.kv_heads < kLeastUnitsAThread * threads;
  AttentionUnits all = {0, 0};
  for (std::int64_t s = 0; s < sequences; s++) {
    plan[s] = {all.units, -1};
    std::int64_t pieces = tiles_of(args, s, group);
    if (splits && pieces == 1 && partitions_of(args, s) > 1) {
      const std::int64_t queries = args.query_starts[s + 1] - args.query_starts[s];
      pieces = partitions_of(args, s);
      plan[s].first_partial = all.partials;
      all.partials += pieces * queries * args.heads * (args.head_size + kPartialExtra);
    }
    all.units += pieces * args.kv_heads;
  }
  plan[sequences] = {all.units, -1};
  return all;
}

}  // namespace
}  // namespace shardloom
