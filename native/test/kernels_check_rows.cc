// Kernels that work row by row: norms, rotary embedding, SiLU-mul, argmax.
#include <cmath>
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

}  // namespace

void add_row_checks(std::vector<KernelCheck>& checks) {
  checks.push_back({"rms_norm", check_rms_norm, same<&KernelTable::rms_norm>, 1});
  checks.push_back({"add_rms_norm", check_add_rms_norm, same<&KernelTable::add_rms_norm>, 1});
  checks.push_back({"head_norm", check_head_norm, same<&KernelTable::head_norm>, 1});
  checks.push_back({"rope", check_rope, same<&KernelTable::rope>, 1});
  checks.push_back({"silu_mul", check_silu_mul, same<&KernelTable::silu_mul>, 1});
  checks.push_back({"argmax", check_argmax, same<&KernelTable::argmax>, 1});
}

}  // namespace shardloom::check
