#include "attention_binding.h"

#include "arguments.h"
#include "kernels/attention_plan.h"
#include "kernels/kernels.h"
#include "operand_checks.h"
#include "work_cost.h"

namespace shardloom {
namespace {

// Where the queries of a step belong.
struct Batch {
  const std::int32_t* query_starts;
  const std::int32_t* context_lengths;
  const std::int32_t* block_tables;
  std::int64_t table_columns;
  std::int64_t sequences;
};

Batch read_batch(Arguments& arguments) {
  const Region starts = arguments.tensor("queryStarts", DType::i32);
  const Region lengths = arguments.tensor("contextLengths", DType::i32);
  const Region tables = arguments.tensor("blockTables", DType::i32);
  const std::int64_t sequences = arguments.integer("sequences", 0, kMaxInt32);
  expect_elements(arguments, "queryStarts", starts, sequences + 1);
  expect_elements(arguments, "contextLengths", lengths, sequences);
  expect_rows(arguments, "blockTables", tables, sequences);
  return {integers(starts), integers(lengths), integers(tables), tables.columns, sequences};
}

// Query heads must read KV heads in order: neighbours share one.
void expect_head_map(Arguments& arguments, const std::int32_t* kv_head_of, std::int64_t heads, std::int64_t kv_heads) {
  expect_below(arguments, "kvHeadOf", kv_head_of, heads, kv_heads);
  for (std::int64_t h = 1; arguments.ok() && h < heads; h++) {
    arguments.expect(kv_head_of[h] >= kv_head_of[h - 1], "expected kvHeadOf not to decrease but [%lld] is %d after %d",
                     static_cast<long long>(h), kv_head_of[h], kv_head_of[h - 1]);
  }
}

// Checks one sequence: its rows, its context, and the blocks that hold the positions its queries see.
void expect_sequence(Arguments& arguments, const Batch& batch, std::int64_t sequence, std::int64_t block_size,
                     std::int64_t blocks, std::int64_t sliding_window) {
  const std::int64_t queries = std::int64_t{batch.query_starts[sequence + 1]} - batch.query_starts[sequence];
  const std::int64_t context = batch.context_lengths[sequence];
  const auto number = static_cast<long long>(sequence);
  arguments.expect(queries >= 0, "expected queryStarts not to decrease after [%lld]", number);
  if (queries == 0) return;
  arguments.expect(context >= queries, "expected contextLengths[%lld] to be at least %lld but it is %lld", number,
                   static_cast<long long>(queries), static_cast<long long>(context));
  const std::int64_t used = (context + block_size - 1) / block_size;
  arguments.expect(used <= batch.table_columns, "expected blockTables to have at least %lld columns but it has %lld",
                   static_cast<long long>(used), static_cast<long long>(batch.table_columns));
  const std::int64_t first_seen = sliding_window == 0 ? 0 : context - queries + 1 - sliding_window;
  const std::int64_t first_block = first_seen > 0 ? first_seen / block_size : 0;
  if (!arguments.ok()) return;
  const std::int32_t* table = batch.block_tables + sequence * batch.table_columns;
  expect_below(arguments, "blockTables", table + first_block, used - first_block, blocks);
}

void expect_batch(Arguments& arguments, const Batch& batch, std::int64_t block_size, std::int64_t blocks,
                  std::int64_t sliding_window, std::int64_t rows) {
  if (!arguments.ok()) return;
  arguments.expect(batch.query_starts[0] >= 0, "expected queryStarts[0] to be at least 0 but it is %d",
                   batch.query_starts[0]);
  for (std::int64_t s = 0; arguments.ok() && s < batch.sequences; s++) {
    expect_sequence(arguments, batch, s, block_size, blocks, sliding_window);
  }
  if (!arguments.ok()) return;
  arguments.expect(batch.query_starts[batch.sequences] <= rows, "expected at most %lld queries but received %d",
                   static_cast<long long>(rows), batch.query_starts[batch.sequences]);
}

// What a unit of a call takes one thread, roughly.
double unit_ns(const AttentionArgs& args, std::int64_t sequences, std::int64_t units) {
  const std::size_t scale_bytes = args.scales == nullptr ? 0 : sizeof(float);
  const double head_bytes = 2 * static_cast<double>(static_cast<std::size_t>(args.head_size) *
                                                    dtype_bytes(args.cache_dtype) + scale_bytes);
  double total = 0;
  for (std::int64_t s = 0; s < sequences; s++) {
    const std::int32_t queries = args.query_starts[s + 1] - args.query_starts[s];
    if (queries == 0) continue;
    const double multiply_adds =
        2 * static_cast<double>(args.head_size) * static_cast<double>(args.heads) * static_cast<double>(queries);
    const double bytes = head_bytes * static_cast<double>(args.kv_heads);
    total += args.context_lengths[s] * (bytes * kNsPerByte + multiply_adds * kNsPerMultiplyAdd);
  }
  return units == 0 ? 0 : total / static_cast<double>(units);
}

// Runs a planned call on the threads of the instance.
void attend(AddonInstance& instance, const AttentionArgs& args, const AttentionUnits& call, std::int64_t sequences) {
  const KernelTable& kernels = *instance.kernels;
  instance.parallel({call.units, 1, unit_ns(args, sequences, call.units)}, [&](Range units, void* workspace) {
    AttentionArgs own = args;
    own.workspace = workspace;
    kernels.attention(own, units);
  });
  if (call.partials == 0) return;
  const double row_ns = kNsPerElement * static_cast<double>(call.partials) / static_cast<double>(sequences * args.heads);
  instance.parallel({sequences * args.heads, 1, row_ns},
                    [&](Range rows, void*) { kernels.attention_combine(args, rows); });
}

void attention(Arguments& arguments) {
  const Region out = arguments.tensor("out", DType::f32);
  const Region q = arguments.tensor("q", DType::f32);
  const CacheRegions cache = read_cache(arguments);
  const Region kv_head_of = arguments.tensor("kvHeadOf", DType::i32);
  const Batch batch = read_batch(arguments);
  const std::int64_t heads = arguments.integer("heads", 0, kMaxInt32);
  const CacheShape shape = read_cache_shape(arguments, cache);
  const double scale = arguments.number("scale");
  const std::int64_t sliding_window = arguments.integer("slidingWindow", 0, kMaxInt32);
  const double soft_cap = arguments.number("softCap");
  arguments.expect(soft_cap >= 0, "expected softCap to be at least 0 but received %.17g", soft_cap);
  arguments.expect(heads * shape.head_size <= q.columns && heads * shape.head_size <= out.columns,
                   "expected q and out to have at least %lld columns but they have %lld and %lld",
                   static_cast<long long>(heads * shape.head_size), static_cast<long long>(q.columns),
                   static_cast<long long>(out.columns));
  expect_elements(arguments, "kvHeadOf", kv_head_of, heads);
  expect_apart(arguments, out, "q", q);
  if (arguments.ok()) expect_head_map(arguments, integers(kv_head_of), heads, shape.kv_heads);
  expect_batch(arguments, batch, shape.block_size, cache.keys.rows, sliding_window, q.rows < out.rows ? q.rows : out.rows);
  if (!arguments.ok()) return;
  AttentionArgs args = {
      .out = static_cast<float*>(out.data),
      .out_stride = out.columns,
      .q = floats(q),
      .q_stride = q.columns,
      .keys = cache.keys.data,
      .values = cache.values.data,
      .scales = floats(cache.scales),
      .cache_dtype = cache.keys.dtype,
      .plan = nullptr,
      .partials = nullptr,
      .kv_head_of = integers(kv_head_of),
      .query_starts = batch.query_starts,
      .context_lengths = batch.context_lengths,
      .block_tables = batch.block_tables,
      .block_table_stride = batch.table_columns,
      .heads = heads,
      .kv_heads = shape.kv_heads,
      .head_size = shape.head_size,
      .block_size = shape.block_size,
      .scale = static_cast<float>(scale),
      .sliding_window = sliding_window,
      .soft_cap = static_cast<float>(soft_cap),
      .workspace = nullptr,
  };
  AddonInstance& instance = arguments.instance();
  AttentionPlan* plan = instance.attention_plan.reserve(batch.sequences + 1);
  AttentionUnits call = {};
  if (plan != nullptr) call = plan_attention(args, batch.sequences, instance.threads(), plan);
  args.plan = plan;
  args.partials = call.partials == 0 ? nullptr : instance.attention_partials.reserve(call.partials);
  arguments.expect(plan != nullptr && (call.partials == 0 || args.partials != nullptr),
                   "expected memory for %lld partial results but there is none", static_cast<long long>(call.partials));
  if (arguments.ok()) attend(instance, args, call, batch.sequences);
}

}  // namespace

const Operation kAttention = {"attention", 17, attention};

}  // namespace shardloom
