// Attention over the paged cache.
#include <cmath>
#include <vector>

#include "../kernels/attention_plan.h"
#include "../kernels/numbers.h"
#include "kernels_check.h"

namespace shardloom::check {
namespace {

// Relative to the largest value that an output can be.
constexpr double kTolerance = 2e-5;

struct Shape {
  DType dtype;
  std::int64_t head_size;
  std::int64_t block_size;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t sequences;
  std::int64_t sliding_window;
  float soft_cap;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << dtype_name(shape.dtype) << ", " << shape.heads << " heads of " << shape.head_size << ", "
             << shape.kv_heads << " KV heads, blocks of " << shape.block_size << ", " << shape.sequences
             << " sequences, window " << shape.sliding_window << ", soft cap " << shape.soft_cap;
}

Shape any_shape(Random& random) {
  constexpr std::int64_t kHeadSizes[] = {16, 32, 64, 80, 96, 112, 128, 256, 512};
  constexpr float kCaps[] = {0.0f, 0.0f, 2.0f, 30.0f};
  Shape shape = {};
  shape.dtype = any_cache_dtype(random);
  shape.head_size = random.chance(2) ? kHeadSizes[random.below(random.chance(4) ? 9 : 7)] : random.between(1, 70);
  shape.block_size = random.chance(2) ? std::int64_t{8} << random.below(3) : random.between(1, 40);
  shape.kv_heads = random.between(1, 3);
  shape.heads = random.between(1, random.chance(6) ? 70 : 9);
  shape.sequences = random.between(1, 3);
  shape.sliding_window = random.chance(3) ? random.between(1, 50) : 0;
  shape.soft_cap = kCaps[random.below(4)];
  return shape;
}

// A batch whose cache holds NaN wherever no query may look.
struct Batch {
  Shape shape;
  Array<std::int32_t> kv_head_of;
  Array<std::int32_t> query_starts;
  Array<std::int32_t> contexts;
  std::int64_t most_context;
  std::int64_t most_blocks;
  Array<std::int32_t> tables;
  std::int64_t queries;

  Batch(Random& random, const Shape& shape)
      : shape(shape), kv_head_of(shape.heads), query_starts(shape.sequences + 1), contexts(shape.sequences),
        most_context(random.chance(8) ? 3 * kAttentionPartition : 110), most_blocks(most_context / shape.block_size + 2),
        tables(shape.sequences * most_blocks) {
    // Not decreasing; some KV heads may have no query head.
    std::int64_t kv_head = 0;
    for (std::int64_t h = 0; h < shape.heads; h++) {
      if (kv_head + 1 < shape.kv_heads && random.chance(3)) kv_head += random.between(1, shape.kv_heads - 1 - kv_head);
      kv_head_of[h] = static_cast<std::int32_t>(kv_head);
    }
    std::int32_t start = 0;
    for (std::int64_t s = 0; s < shape.sequences; s++) {
      const auto context = static_cast<std::int32_t>(random.between(1, most_context));
      const bool decode = random.chance(2) || context > 110;
      query_starts[s] = start;
      contexts[s] = context;
      start += decode ? 1 : static_cast<std::int32_t>(random.between(0, context));
    }
    query_starts[shape.sequences] = start;
    queries = start;
    // Every block in some other place, in turns among the sequences.
    for (std::int64_t i = 0; i < tables.size(); i++) {
      const std::int64_t sequence = i / most_blocks, block = i % most_blocks;
      const bool used = block * shape.block_size < contexts[sequence];
      const std::int64_t place = (most_blocks - 1 - block) * shape.sequences + sequence;
      tables[i] = used ? static_cast<std::int32_t>(place) : -1;
    }
  }

  std::int64_t blocks() const { return most_blocks * shape.sequences; }
  std::int64_t cache_size() const { return blocks() * shape.kv_heads * shape.block_size * shape.head_size; }
  std::int64_t scales_size() const { return blocks() * shape.kv_heads * 2 * shape.block_size; }
};

// Codes have a scale, which is NaN where no query may look; there, floats are.
void fill_element(float value, std::int8_t* out) { *out = static_cast<std::int8_t>(value * kKvCodeLimit); }

template <class T>
void fill_element(float value, T* out) {
  from_float(value, out);
}

// Element d of position p of a head is at p * `position_step` + d * `element_step`. The scales of codes begin at `scales`.
template <class T>
void fill_cache(Random& random, const Batch& batch, const Array<T>& cache, float* scales, float scale,
                std::int64_t position_step, std::int64_t element_step) {
  const Shape& shape = batch.shape;
  constexpr bool kCodes = std::is_same_v<T, std::int8_t>;
  if constexpr (!kCodes) {
    for (std::int64_t i = 0; i < cache.size(); i++) from_float(__builtin_nanf(""), cache.data() + i);
  }
  for (std::int64_t s = 0; s < shape.sequences; s++) {
    for (std::int64_t p = 0; p < batch.contexts[s]; p++) {
      const std::int64_t block = batch.tables[s * batch.most_blocks + p / shape.block_size];
      for (std::int64_t h = 0; h < shape.kv_heads; h++) {
        const std::int64_t head = block * shape.kv_heads + h, offset = p % shape.block_size;
        T* at = cache.data() + head * shape.block_size * shape.head_size + offset * position_step;
        if (kCodes) scales[head * 2 * shape.block_size + offset] = scale * random.unit() / kKvCodeLimit;
        const float factor = kCodes ? 1.0f : scale;
        for (std::int64_t d = 0; d < shape.head_size; d++) fill_element(random.unit() * factor, at + d * element_step);
      }
    }
  }
}

template <class T>
void check_shape(Check& check, Random& random, const Batch& batch) {
  const Shape& shape = batch.shape;
  const std::int64_t q_stride = shape.heads * shape.head_size + random.below(5);
  const std::int64_t out_stride = shape.heads * shape.head_size + random.below(5);
  const Array<float> q(batch.queries == 0 ? 0 : (batch.queries - 1) * q_stride + shape.heads * shape.head_size);
  const Array<T> keys(batch.cache_size()), values(batch.cache_size());
  const Array<float> scales(std::is_same_v<T, std::int8_t> ? batch.scales_size() : 0);
  fill(random, q, Numbers::ordinary);
  for (std::int64_t i = 0; i < q.size(); i++) q[i] *= 2;
  for (std::int64_t i = 0; i < scales.size(); i++) scales[i] = __builtin_nanf("");
  fill_cache(random, batch, keys, scales.data(), 2.0f, 1, shape.block_size);
  fill_cache(random, batch, values, scales.data() + shape.block_size, 1.0f, shape.head_size, 1);
  // In as many parts as `threads` threads would do it in, the last one first.
  const auto apply = [&](const KernelTable& kernels, const Output& out, std::int64_t threads) {
    AttentionArgs args = {};
    args.out = out.data();
    args.out_stride = out_stride;
    args.q = q.data();
    args.q_stride = q_stride;
    args.keys = keys.data();
    args.values = values.data();
    args.scales = scales.size() == 0 ? nullptr : scales.data();
    args.cache_dtype = shape.dtype;
    args.kv_head_of = batch.kv_head_of.data();
    args.query_starts = batch.query_starts.data();
    args.context_lengths = batch.contexts.data();
    args.block_tables = batch.tables.data();
    args.block_table_stride = batch.most_blocks;
    args.heads = shape.heads;
    args.kv_heads = shape.kv_heads;
    args.head_size = shape.head_size;
    args.block_size = shape.block_size;
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
    args.sliding_window = shape.sliding_window;
    args.soft_cap = shape.soft_cap;
    args.workspace = check.workspace.fresh();
    const Array<AttentionPlan> plan(shape.sequences + 1);
    const AttentionUnits all = plan_attention(args, shape.sequences, threads, plan.data());
    const Array<float> partials(all.partials);
    args.plan = plan.data();
    args.partials = partials.data();
    const std::int64_t rows = all.partials == 0 ? 0 : shape.sequences * shape.heads;
    for (std::int64_t part = threads - 1; part >= 0; part--) {
      kernels.attention(args, {all.units * part / threads, all.units * (part + 1) / threads});
    }
    for (std::int64_t part = 0; part < threads; part++) {
      kernels.attention_combine(args, {rows * part / threads, rows * (part + 1) / threads});
    }
  };
  const std::int64_t columns = shape.heads * shape.head_size;
  const Output received(batch.queries, columns, out_stride), expected(batch.queries, columns, out_stride);
  const Output shared(batch.queries, columns, out_stride);
  apply(check.variant, received, 1);
  apply(check.portable, expected, 1);
  check.expect_close(received, expected, [](std::int64_t, std::int64_t) { return kTolerance; }, "the result");
  check.digest(received);
  apply(check.variant, shared, random.between(2, 6));
  check.expect_same(shared, received, "the result of several threads");
}

void check_attention(Check& check) {
  check.each_case([&](Random& random) {
    const Shape shape = any_shape(random);
    check.describe(shape);
    const Batch batch(random, shape);
    with_cache_type(shape.dtype, [&](auto* type) {
      check_shape<std::remove_cvref_t<decltype(*type)>>(check, random, batch);
    });
  });
}

}  // namespace

void add_attention_checks(std::vector<KernelCheck>& checks) {
  checks.push_back({"attention", check_attention, same<&KernelTable::attention>, 2});
}

}  // namespace shardloom::check
