// Kernels that bring numbers elsewhere: into the cache of keys and values, into bf16, and from all ranks into a sum.
#include <cmath>
#include <cstring>
#include <deque>
#include <type_traits>
#include <vector>

#include "../kernels/numbers.h"
#include "kernels_check.h"

namespace shardloom::check {
namespace {

template <class T>
bool same_elements(const Array<T>& received, const Array<T>& expected) {
  for (std::int64_t i = 0; i < received.size(); i++) {
    const float a = to_float(received[i]), b = to_float(expected[i]);
    if (bits_of_float(a) != bits_of_float(b) && !(std::isnan(a) && std::isnan(b))) return false;
  }
  return true;
}

template <class T>
void check_write_kv_of(Check& check, Random& random, DType dtype) {
  constexpr std::int64_t kBlocks = 4;
  const std::int64_t rows = random.between(1, 6), kv_heads = random.between(1, 4);
  const std::int64_t head_size = random.between(1, 140), block_size = random.between(2, 9);
  const Numbers numbers = any_numbers(random);
  check.describe(dtype_name(dtype), ", ", rows, " rows, ", kv_heads, " heads of ", head_size, ", blocks of ", block_size,
                 ", ", name_of(numbers), " numbers");
  const std::int64_t key_column = random.below(9), value_column = key_column + kv_heads * head_size + random.below(9);
  const std::int64_t stride = value_column + kv_heads * head_size + random.below(9);
  const std::int64_t cache_size = kBlocks * kv_heads * block_size * head_size;
  const Array<float> source((rows - 1) * stride + value_column + kv_heads * head_size);
  const Array<std::int32_t> slots(rows);
  fill(random, source, numbers);
  // Up to beyond the range of f16.
  if (numbers != Numbers::tiny && random.chance(3)) widen(source, 1e5f);
  const std::int64_t first = random.below(kBlocks * block_size);
  for (std::int64_t m = 0; m < rows; m++) {
    slots[m] = static_cast<std::int32_t>((first + m) % (kBlocks * block_size));
  }
  const Array<T> keys(cache_size), values(cache_size), expected_keys(cache_size), expected_values(cache_size);
  const std::int64_t scales_size = std::is_same_v<T, std::int8_t> ? kBlocks * kv_heads * 2 * block_size : 0;
  const Array<float> scales(scales_size), expected_scales(scales_size);
  const auto apply = [&](const KernelTable& kernels, const Array<T>& to_keys, const Array<T>& to_values,
                         const Array<float>& to_scales) {
    WriteKvArgs args = {};
    args.keys = to_keys.data();
    args.values = to_values.data();
    args.scales = scales_size == 0 ? nullptr : to_scales.data();
    args.cache_dtype = dtype;
    args.source = source.data();
    args.source_stride = stride;
    args.slots = slots.data();
    args.key_column = key_column;
    args.value_column = value_column;
    args.kv_heads = kv_heads;
    args.head_size = head_size;
    args.block_size = block_size;
    kernels.write_kv(args, {0, rows});
  };
  apply(check.variant, keys, values, scales);
  apply(check.portable, expected_keys, expected_values, expected_scales);
  check.expect(same_elements(keys, expected_keys), "the keys in the cache differ");
  check.expect(same_elements(values, expected_values), "the values in the cache differ");
  check.expect(same_elements(scales, expected_scales), "the scales in the cache differ");
  if (numbers != Numbers::special) check.digest(keys.data(), static_cast<std::size_t>(cache_size) * sizeof(T));
}

void check_write_kv(Check& check) {
  check.each_case([&](Random& random) {
    const DType dtype = any_cache_dtype(random);
    with_cache_type(dtype, [&](auto* type) {
      check_write_kv_of<std::remove_cvref_t<decltype(*type)>>(check, random, dtype);
    });
  });
}

template <class T>
void check_sum_ranks_of(Check& check, Random& random, DType dtype) {
  const std::int64_t ranks = random.between(1, 9), count = random.sized(1, 5000);
  const Numbers numbers = any_numbers(random);
  const bool in_place = dtype == DType::f32 && random.chance(2), with_copy = random.chance(2);
  check.describe(dtype_name(dtype), ", ", ranks, " ranks, ", count, " elements, ", in_place ? "in place, " : "",
                 with_copy ? "with a copy, " : "", name_of(numbers), " numbers");
  std::deque<Array<T>> payloads;
  for (std::int64_t r = 0; r < ranks; r++) fill(random, payloads.emplace_back(count), numbers);
  const std::int64_t own = random.below(ranks), at = random.between(0, count);
  const Output received(1, count, count), copy(1, count, count), expected(1, count, count);
  const auto apply = [&](const KernelTable& kernels, const Output& out, const Output* copied, Range elements) {
    std::vector<const void*> sources;
    for (const Array<T>& payload : payloads) sources.push_back(payload.data());
    if constexpr (std::is_same_v<T, float>) {
      // What this rank contributes is where the sum is to be.
      if (in_place) {
        std::memcpy(out.data() + elements.begin, payloads[static_cast<std::size_t>(own)].data() + elements.begin,
                    static_cast<std::size_t>(elements.end - elements.begin) * sizeof(float));
        sources[static_cast<std::size_t>(own)] = out.data();
      }
    }
    RankSumArgs args = {};
    args.out = out.data();
    args.copy = copied == nullptr ? nullptr : copied->data();
    args.sources = sources.data();
    args.payload = dtype;
    args.ranks = ranks;
    args.own = own;
    kernels.sum_ranks(args, elements);
  };
  apply(check.variant, received, with_copy ? &copy : nullptr, {at, count});
  apply(check.variant, received, with_copy ? &copy : nullptr, {0, at});
  apply(check.portable, expected, nullptr, {0, count});
  check.expect_same(received, expected, "the sum");
  if (with_copy) check.expect_same(copy, expected, "the copy of the sum");
  check.digest(received);
}

void check_sum_ranks(Check& check) {
  check.each_case([&](Random& random) {
    if (random.chance(2)) return check_sum_ranks_of<float>(check, random, DType::f32);
    check_sum_ranks_of<bf16>(check, random, DType::bf16);
  });
}

void check_narrow_bf16(Check& check) {
  check.each_case([&](Random& random) {
    const std::int64_t count = random.sized(1, 5000), at = random.between(0, count);
    const Numbers numbers = any_numbers(random);
    check.describe(count, " ", name_of(numbers), " numbers");
    const Array<float> x(count);
    const Array<bf16> received(count), expected(count);
    fill(random, x, numbers);
    check.variant.narrow_bf16(received.data(), x.data(), {at, count});
    check.variant.narrow_bf16(received.data(), x.data(), {0, at});
    check.portable.narrow_bf16(expected.data(), x.data(), {0, count});
    check.expect(same_elements(received, expected), "the numbers in bf16 differ");
    if (numbers != Numbers::special) check.digest(received.data(), static_cast<std::size_t>(count) * sizeof(bf16));
  });
}

}  // namespace

void add_payload_checks(std::vector<KernelCheck>& checks) {
  checks.push_back({"sum_ranks", check_sum_ranks, same<&KernelTable::sum_ranks>, 1});
  checks.push_back({"narrow_bf16", check_narrow_bf16, same<&KernelTable::narrow_bf16>, 1});
  checks.push_back({"write_kv", check_write_kv, same<&KernelTable::write_kv>, 1});
}

}  // namespace shardloom::check
