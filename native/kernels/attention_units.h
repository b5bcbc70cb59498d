// Which part of an attention call a unit is, for every implementation of the kernel.
//
// The units of a sequence are its pieces times the KV heads, KV heads running faster: memory holds them side by side.
// Where the rows (pairs of a query and a query head) of a KV head fit one tile, pieces are the partitions of its context,
// or there is one piece that goes through all of them. Otherwise pieces are tiles of rows: the first, the last, the
// second, the last but one and so on, for a later tile sees more positions and neighbouring pieces go to one thread.
#pragma once

#include "kernels.h"

namespace shardloom {
namespace {

struct Heads {
  std::int64_t begin;
  std::int64_t count;
};

// The query heads that read a KV head: they are neighbours, for kv_head_of does not decrease.
inline Heads heads_of(const AttentionArgs& args, std::int64_t kv_head) {
  std::int64_t begin = 0;
  while (begin < args.heads && args.kv_head_of[begin] < kv_head) begin++;
  std::int64_t end = begin;
  while (end < args.heads && args.kv_head_of[end] == kv_head) end++;
  return {begin, end - begin};
}

// A piece of a sequence.
struct AttentionPiece {
  std::int64_t sequence;
  std::int64_t pieces;
  // Place among the pieces.
  std::int64_t number;
  std::int64_t first_kv_head;
  std::int64_t kv_heads;

  // Where pieces are tiles of rows, the tile that this one is.
  std::int64_t tile() const { return number % 2 == 0 ? number / 2 : pieces - 1 - number / 2; }
};

// The piece that a unit belongs to, with the KV heads from that of the unit on, those before unit `end`.
inline AttentionPiece piece_at(const AttentionArgs& args, std::int64_t unit, std::int64_t end) {
  std::int64_t sequence = 0;
  while (args.plan[sequence + 1].first_unit <= unit) sequence++;
  const std::int64_t own = unit - args.plan[sequence].first_unit;
  const std::int64_t kv_head = own % args.kv_heads;
  const std::int64_t left = args.kv_heads - kv_head;
  return {sequence, (args.plan[sequence + 1].first_unit - args.plan[sequence].first_unit) / args.kv_heads,
          own / args.kv_heads, kv_head, end - unit < left ? end - unit : left};
}

// The rows of a KV head that a piece has, of `all`: row r is query r / heads, head r % heads.
inline Range rows_of(const AttentionArgs& args, const AttentionPiece& piece, std::int64_t all) {
  if (piece.pieces == 1 || args.plan[piece.sequence].first_partial >= 0) return {0, all};
  const std::int64_t begin = piece.tile() * kAttentionHeadRows;
  const std::int64_t end = begin + kAttentionHeadRows;
  return {begin < all ? begin : all, end < all ? end : all};
}

// The positions that a query sees: [begin, end).
inline Range positions_of(const AttentionArgs& args, std::int64_t sequence, std::int64_t query) {
  const std::int64_t queries = args.query_starts[sequence + 1] - args.query_starts[sequence];
  const std::int64_t end = args.context_lengths[sequence] - queries + query + 1;
  const bool windowed = args.sliding_window > 0 && end > args.sliding_window;
  return {windowed ? end - args.sliding_window : 0, end};
}

// The partitions that a query sees: [first, end), counted from the first one that the first query of its sequence sees.
struct SeenPartitions {
  Range positions;
  std::int64_t base;
  std::int64_t first;
  std::int64_t end;

  SeenPartitions(const AttentionArgs& args, std::int64_t sequence, std::int64_t query)
      : positions(positions_of(args, sequence, query)),
        base(positions_of(args, sequence, 0).begin / kAttentionPartition),
        first(positions.begin / kAttentionPartition - base),
        end((positions.end - 1) / kAttentionPartition + 1 - base) {}

  // The positions of a partition that the query sees.
  std::int64_t begin_of(std::int64_t partition) const {
    const std::int64_t begin = (base + partition) * kAttentionPartition;
    return begin > positions.begin ? begin : positions.begin;
  }
  std::int64_t end_of(std::int64_t partition) const {
    const std::int64_t next = (base + partition + 1) * kAttentionPartition;
    return next < positions.end ? next : positions.end;
  }
};

// The partial result of a row in a partition that is a piece: its largest score, its sum of weights, its weighted sums.
inline float* partial_of(const AttentionArgs& args, std::int64_t sequence, std::int64_t piece, std::int64_t query,
                         std::int64_t head) {
  const std::int64_t queries = args.query_starts[sequence + 1] - args.query_starts[sequence];
  const std::int64_t row = (piece * queries + query) * args.heads + head;
  return args.partials + args.plan[sequence].first_partial + row * (args.head_size + kPartialExtra);
}

// True where the pieces of a sequence are partitions, which attention_combine puts together.
inline bool is_split(const AttentionArgs& args, std::int64_t sequence) {
  return args.plan[sequence].first_partial >= 0;
}

// Calls work(args, piece) for the pieces of some units.
template <class Work>
inline void for_each_piece(const AttentionArgs& args, Range units, Work work) {
  for (std::int64_t unit = units.begin; unit < units.end;) {
    const AttentionPiece piece = piece_at(args, unit, units.end);
    work(args, piece);
    unit += piece.kv_heads;
  }
}

// Calls work(args, sequence, query, head) for what attention_combine has to put together. Rows count sequences times
// query heads.
template <class Work>
inline void for_each_split_row(const AttentionArgs& args, Range rows, Work work) {
  for (std::int64_t row = rows.begin; row < rows.end; row++) {
    const std::int64_t sequence = row / args.heads;
    if (!is_split(args, sequence)) continue;
    const std::int64_t queries = args.query_starts[sequence + 1] - args.query_starts[sequence];
    for (std::int64_t query = 0; query < queries; query++) work(args, sequence, query, row % args.heads);
  }
}

}  // namespace
}  // namespace shardloom
