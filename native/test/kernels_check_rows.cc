// Kernels that work row by row: norms, rotary embedding, SiLU-mul, argmax, cache writes.
#include <cmath>
#include <deque>
#include <vector>

#include "../kernels/numbers.h"
#include "kernels_check.h"

namespace shardloom::check {
namespace {

constexpr double kRounding = 0x1p-24;

struct RowSizes {
  std::int64_t rows;
  std::int64_t width;
  Numbers numbers;
};

std::ostream& operator<<(std::ostream& out, const RowSizes& sizes) {
  return out << sizes.rows << " rows of " << sizes.width << ", " << name_of(sizes.numbers) << " numbers";
}

RowSizes any_rows(Random& random) { return {random.between(1, 7), random.sized(1, 4112), any_numbers(random)}; }

// Runs `apply` over all rows at once and over two ranges of them; both must give the same.
template <class Apply>
void check_ranges(Check& check, Random& random, const Output& whole, const Output& split, const Apply& apply) {
  const std::int64_t rows = whole.rows();
  const std::int64_t at = random.between(0, rows);
  apply(check.variant, whole, Range{0, rows});
  apply(check.variant, split, Range{at, rows});
  apply(check.variant, split, Range{0, at});
  check.expect_same(split, whole, "the result of two ranges of rows");
  check.digest(whole);
}

// Both kernels sum `width` squares in f32, and round a few operations.
Bound norm_bound(const Output& expected, std::int64_t width) {
  return [&expected, width](std::int64_t m, std::int64_t i) {
    const double sums = static_cast<double>(width) / 8 + 16;
    return 2 * sums * kRounding * std::fabs(static_cast<double>(expected.row(m)[i])) + 4 * 0x1p-149;
  };
}

void copy_rows(const Output& to, const Array<float>& from) {
  for (std::int64_t m = 0; m < to.rows(); m++) {
    for (std::int64_t i = 0; i < to.columns(); i++) to.row(m)[i] = from[m * to.columns() + i];
  }
}

void check_rms_norm(Check& check) {
  check.each_case([&](Random& random) {
    const RowSizes sizes = any_rows(random);
    const std::int64_t x_stride = sizes.width + random.below(9), out_stride = sizes.width + random.below(9);
    check.describe(sizes, ", strides ", x_stride, " and ", out_stride);
    const Array<float> x((sizes.rows - 1) * x_stride + sizes.width), weight(sizes.width);
    fill(random, x, sizes.numbers);
    fill(random, weight, Numbers::ordinary);
    const auto apply = [&](const KernelTable& kernels, const Output& out, Range rows) {
      NormArgs args = {};
      args.out = out.data();
      args.out_stride = out_stride;
      args.x = x.data();
      args.x_stride = x_stride;
      args.weight = weight.data();
      args.width = sizes.width;
      args.epsilon = 1e-5f;
      kernels.rms_norm(args, rows);
    };
    const Output received(sizes.rows, sizes.width, out_stride), split(sizes.rows, sizes.width, out_stride);
    const Output expected(sizes.rows, sizes.width, out_stride);
    check_ranges(check, random, received, split, apply);
    apply(check.portable, expected, {0, sizes.rows});
    check.expect_close(received, expected, norm_bound(expected, sizes.width), "the norm");
  });
}

// The norm is written over x, as layers do.
void check_add_rms_norm(Check& check) {
  check.each_case([&](Random& random) {
    const RowSizes sizes = any_rows(random);
    const std::int64_t stride = sizes.width + random.below(9);
    check.describe(sizes, ", stride ", stride);
    const Array<float> x(sizes.rows * sizes.width), before(sizes.rows * sizes.width), weight(sizes.width);
    fill(random, x, sizes.numbers);
    fill(random, before, sizes.numbers);
    fill(random, weight, Numbers::ordinary);
    const auto apply = [&](const KernelTable& kernels, const Output& out, const Output& residual, Range rows) {
      copy_rows(out, x);
      copy_rows(residual, before);
      NormArgs args = {};
      args.out = out.data();
      args.out_stride = out.stride();
      args.x = out.data();
      args.x_stride = out.stride();
      args.residual = residual.data();
      args.residual_stride = residual.stride();
      args.weight = weight.data();
      args.width = sizes.width;
      args.epsilon = 1e-6f;
      kernels.add_rms_norm(args, rows);
    };
    const Range rows = {0, sizes.rows};
    const Output received(sizes.rows, sizes.width, stride), expected(sizes.rows, sizes.width, stride);
    const Output residual(sizes.rows, sizes.width, stride + 1), expected_residual(sizes.rows, sizes.width, stride);
    apply(check.variant, received, residual, rows);
    apply(check.portable, expected, expected_residual, rows);
    check.expect_same(residual, expected_residual, "the residual");
    check.expect_close(received, expected, norm_bound(expected, sizes.width), "the norm");
    check.digest(received);
    check.digest(residual);
  });
}

// Heads in the middle of a row; the columns around them stay.
struct HeadSizes {
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t head_size;
  std::int64_t first;
  std::int64_t columns;
  Numbers numbers;
};

std::ostream& operator<<(std::ostream& out, const HeadSizes& sizes) {
  return out << sizes.rows << " rows, " << sizes.heads << " heads of " << sizes.head_size << " from column "
             << sizes.first << ", " << name_of(sizes.numbers) << " numbers";
}

HeadSizes any_heads(Random& random, std::int64_t head_step) {
  HeadSizes sizes = {};
  sizes.rows = random.between(1, 7);
  sizes.heads = random.between(0, 5);
  sizes.head_size = random.between(1, 130 / head_step) * head_step;
  sizes.first = random.below(10);
  sizes.columns = sizes.first + sizes.heads * sizes.head_size + random.below(10);
  if (sizes.columns == 0) sizes.columns = 1;
  sizes.numbers = any_numbers(random);
  return sizes;
}

void check_head_norm(Check& check) {
  check.each_case([&](Random& random) {
    const HeadSizes sizes = any_heads(random, 1);
    check.describe(sizes);
    const Array<float> x(sizes.rows * sizes.columns), weight(sizes.head_size);
    fill(random, x, sizes.numbers);
    fill(random, weight, Numbers::ordinary);
    const auto apply = [&](const KernelTable& kernels, const Output& out, Range rows) {
      HeadNormArgs args = {};
      args.x = out.data() + sizes.first;
      args.x_stride = sizes.columns;
      args.weight = weight.data();
      args.heads = sizes.heads;
      args.head_size = sizes.head_size;
      args.epsilon = 1e-5f;
      kernels.head_norm(args, rows);
    };
    const Output received(sizes.rows, sizes.columns, sizes.columns), split(sizes.rows, sizes.columns, sizes.columns);
    const Output expected(sizes.rows, sizes.columns, sizes.columns);
    for (const Output* out : {&received, &split, &expected}) copy_rows(*out, x);
    check_ranges(check, random, received, split, apply);
    apply(check.portable, expected, {0, sizes.rows});
    const Bound in_heads = norm_bound(expected, sizes.head_size);
    const std::int64_t end = sizes.first + sizes.heads * sizes.head_size;
    check.expect_close(
        received, expected,
        [&](std::int64_t m, std::int64_t i) { return i >= sizes.first && i < end ? in_heads(m, i) : -1.0; },
        "the norm of a head, or what is beside the heads,");
  });
}

void check_rope(Check& check) {
  check.each_case([&](Random& random) {
    constexpr std::int64_t kPositions = 12;
    const HeadSizes sizes = any_heads(random, 2);
    check.describe(sizes);
    const Array<float> x(sizes.rows * sizes.columns), cos_sin(kPositions * sizes.head_size);
    const Array<std::int32_t> positions(sizes.rows);
    fill(random, x, sizes.numbers);
    fill(random, cos_sin, Numbers::ordinary);
    for (std::int64_t m = 0; m < sizes.rows; m++) positions[m] = static_cast<std::int32_t>(random.below(kPositions));
    const auto apply = [&](const KernelTable& kernels, const Output& out, Range rows) {
      RopeArgs args = {};
      args.x = out.data() + sizes.first;
      args.x_stride = sizes.columns;
      args.positions = positions.data();
      args.cos_sin = cos_sin.data();
      args.heads = sizes.heads;
      args.head_size = sizes.head_size;
      kernels.rope(args, rows);
    };
    const Output received(sizes.rows, sizes.columns, sizes.columns), split(sizes.rows, sizes.columns, sizes.columns);
    const Output expected(sizes.rows, sizes.columns, sizes.columns);
    for (const Output* out : {&received, &split, &expected}) copy_rows(*out, x);
    check_ranges(check, random, received, split, apply);
    apply(check.portable, expected, {0, sizes.rows});
    check.expect_same(received, expected, "the rotation, of which each operation is rounded,");
  });
}

// Numbers up to 2^(exponent) times those of a case: for exponentials, whose whole range matters.
void widen(const Array<float>& values, float factor) {
  for (std::int64_t i = 0; i < values.size(); i++) values[i] *= factor;
}

void check_silu_mul(Check& check) {
  check.each_case([&](Random& random) {
    const RowSizes sizes = any_rows(random);
    const std::int64_t in_stride = 2 * sizes.width + random.below(9), out_stride = sizes.width + random.below(9);
    check.describe(sizes, ", strides ", in_stride, " and ", out_stride);
    const Array<float> gate_up((sizes.rows - 1) * in_stride + 2 * sizes.width);
    fill(random, gate_up, sizes.numbers);
    if (sizes.numbers != Numbers::tiny) widen(gate_up, random.chance(3) ? 120.0f : 12.0f);
    const auto apply = [&](const KernelTable& kernels, const Output& out, Range rows) {
      SiluMulArgs args = {};
      args.out = out.data();
      args.out_stride = out_stride;
      args.gate_up = gate_up.data();
      args.gate_up_stride = in_stride;
      args.width = sizes.width;
      kernels.silu_mul(args, rows);
    };
    const Output received(sizes.rows, sizes.width, out_stride), split(sizes.rows, sizes.width, out_stride);
    const Output expected(sizes.rows, sizes.width, out_stride);
    check_ranges(check, random, received, split, apply);
    apply(check.portable, expected, {0, sizes.rows});
    // Exponentials below the smallest normal number may be zero; they are multiplied with a gate of up to 120 or so.
    const Bound bound = [&](std::int64_t m, std::int64_t i) {
      const double up = std::fabs(static_cast<double>(gate_up[m * in_stride + sizes.width + i]));
      return 10 * kRounding * std::fabs(static_cast<double>(expected.row(m)[i])) + 128 * 0x1p-126 * (up + 1);
    };
    check.expect_close(received, expected, bound, "silu(gate) * up");
  });
}

void check_argmax(Check& check) {
  check.each_case([&](Random& random) {
    const std::int64_t rows = random.between(1, 5), columns = random.sized(1, 3000) - 1;
    const std::int64_t stride = columns + random.below(9);
    const Numbers numbers = any_numbers(random);
    // Few different values, so that the largest one stands in several places.
    const bool ties = random.chance(2);
    check.describe(rows, " rows of ", columns, ", stride ", stride, ", ", name_of(numbers), ties ? " ties" : " numbers");
    const Array<float> logits((rows - 1) * stride + columns);
    fill(random, logits, numbers);
    if (ties) {
      for (std::int64_t i = 0; i < logits.size(); i++) logits[i] = std::floor(logits[i] * 4);
    }
    const Output received(1, rows, rows), expected(1, rows, rows);
    const Array<std::int32_t> received_ids(rows), expected_ids(rows);
    const auto apply = [&](const KernelTable& kernels, const Output& values, const Array<std::int32_t>& ids) {
      ArgmaxArgs args = {};
      args.values = values.data();
      args.ids = ids.data();
      args.logits = logits.data();
      args.logits_stride = stride;
      args.columns = columns;
      args.first_id = 1000;
      kernels.argmax(args, {0, rows});
    };
    apply(check.variant, received, received_ids);
    apply(check.portable, expected, expected_ids);
    // Zeros of either sign are equal, and either may be reported.
    check.expect_close(received, expected, [](std::int64_t, std::int64_t) { return 0.0; }, "the largest value");
    const auto bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
    check.expect_same_bytes(received_ids.data(), expected_ids.data(), bytes, "the ids of the largest values differ");
    check.digest(received_ids.data(), bytes);
  });
}

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

void add_row_checks(std::vector<KernelCheck>& checks) {
  checks.push_back({"rms_norm", check_rms_norm, same<&KernelTable::rms_norm>, 1});
  checks.push_back({"add_rms_norm", check_add_rms_norm, same<&KernelTable::add_rms_norm>, 1});
  checks.push_back({"head_norm", check_head_norm, same<&KernelTable::head_norm>, 1});
  checks.push_back({"rope", check_rope, same<&KernelTable::rope>, 1});
  checks.push_back({"silu_mul", check_silu_mul, same<&KernelTable::silu_mul>, 1});
  checks.push_back({"argmax", check_argmax, same<&KernelTable::argmax>, 1});
  checks.push_back({"sum_ranks", check_sum_ranks, same<&KernelTable::sum_ranks>, 1});
  checks.push_back({"narrow_bf16", check_narrow_bf16, same<&KernelTable::narrow_bf16>, 1});
  checks.push_back({"write_kv", check_write_kv, same<&KernelTable::write_kv>, 1});
}

}  // namespace shardloom::check
