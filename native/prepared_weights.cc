#include "prepared_weights.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <new>

#include "arrange_codes.h"
#include "instance.h"
#include "kernels/arranged_layout.h"

namespace shardloom {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::int64_t kLine = 64;
// What arranging a byte of codes takes, roughly.
constexpr double kNsPerArrangedByte = 0.1;

// An odd number of cache lines, so that rows do not compete for the same cache sets.
std::int64_t row_stride(std::int64_t bytes) { return ((bytes + kLine - 1) / kLine | 1) * kLine; }

bool are_whole(const float* codebook, double scale) {
  for (int i = 0; i < 16; i++) {
    const double entry = codebook[i] * scale;
    if (entry != std::nearbyint(entry)) return false;
  }
  return true;
}

// The smallest power of two that makes whole numbers up to `limit` of all entries, not all of which are 0; 0 where there is none.
double exact_scale(const float* codebook, double largest, double limit) {
  double scale = 1;
  while (largest * scale * 2 <= limit) scale *= 2;
  while (largest * scale > limit) scale /= 2;
  if (!are_whole(codebook, scale)) return 0;
  while (are_whole(codebook, scale / 2)) scale /= 2;
  return scale;
}

struct CodebookScale {
  double scale;
  double step;
};

// What the functions of the same name in src/kernels/activation-levels.ts do, operation by operation: both have to take the
// same scale.
struct EntryWeights {
  double values[16];
};

EntryWeights entry_weights(const float* codebook, double largest) {
  EntryWeights weights;
  for (int i = 0; i < 16; i++) {
    const double entry = codebook[i];
    double below = -HUGE_VAL;
    double above = HUGE_VAL;
    for (int j = 0; j < 16; j++) {
      if (codebook[j] < entry) below = std::fmax(below, codebook[j]);
      if (codebook[j] > entry) above = std::fmin(above, codebook[j]);
    }
    const double from = std::isfinite(below) ? (below + entry) / 2 : entry;
    const double to = std::isfinite(above) ? (entry + above) / 2 : entry;
    const double share = entry / largest;
    const double density = 1 - share * share;
    const bool is_end = !(std::isfinite(below) && std::isfinite(above));
    weights.values[i] = (to - from) * density * density * density + (is_end ? largest / 128 : 0);
  }
  return weights;
}

CodebookScale fit_scale(const float* codebook, double largest, std::int32_t limit) {
  const EntryWeights weights = entry_weights(codebook, largest);
  CodebookScale best = {0, 0};
  double least = HUGE_VAL;
  for (std::int32_t level = (limit + 1) / 2; level <= limit; level++) {
    const double scale = level / largest;
    double products = 0;
    double squares = 0;
    for (int i = 0; i < 16; i++) {
      const double code = std::nearbyint(codebook[i] * scale);
      products += weights.values[i] * codebook[i] * code;
      squares += weights.values[i] * code * code;
    }
    const double step = products / squares;
    double error = 0;
    for (int i = 0; i < 16; i++) {
      const double rest = codebook[i] - std::nearbyint(codebook[i] * scale) * step;
      error += weights.values[i] * rest * rest;
    }
    if (error < least) {
      least = error;
      best = {scale, step};
    }
  }
  return best;
}

CodebookScale codebook_scale(const float* codebook, double largest, std::int32_t limit, bool fitted) {
  if (largest == 0) return {1, 1};
  const double exact = exact_scale(codebook, largest, limit);
  if (exact != 0) return {exact, 1 / exact};
  return fitted ? fit_scale(codebook, largest, limit) : CodebookScale{limit / largest, 1 / (limit / largest)};
}

template <class Code>
bool quantize_entries(const float* codebook, std::int32_t limit, Code (&codes)[16], float& step) {
  double largest = 0;
  for (int i = 0; i < 16; i++) {
    if (!std::isfinite(codebook[i])) return false;
    largest = std::fmax(largest, std::fabs(static_cast<double>(codebook[i])));
  }
  const CodebookScale found = codebook_scale(codebook, largest, limit, sizeof(Code) == 1);
  for (int i = 0; i < 16; i++) codes[i] = static_cast<Code>(std::nearbyint(codebook[i] * found.scale));
  step = static_cast<float>(found.step);
  return std::isfinite(step) && step >= FLT_MIN;
}

// Calls visit(pointer) with the data as what is as wide as its values.
template <class Visit>
void with_values(const Region& region, const Visit& visit) {
  if (region.dtype == DType::f16) return visit(static_cast<std::uint16_t*>(region.data));
  visit(static_cast<std::uint32_t*>(region.data));
}

// What a weight consists of while it is arranged.
struct Arrangement {
  std::uint8_t* codes;
  Region scales;
  Region minimums;  // without data for none
  std::int64_t outputs;
  std::int64_t row_bytes;  // of codes
  std::int64_t blocks;     // scales of a row
  bool is_code4;
  bool in_groups;  // codes of whole groups are where they belong

  std::int64_t groups() const { return outputs / kGroupRows; }
  std::int64_t group_bytes() const { return row_bytes * kGroupRows; }
  std::int64_t value_group_bytes() const {
    return blocks * kGroupRows * static_cast<std::int64_t>(dtype_bytes(scales.dtype));
  }
};

void arrange_group_values(const Region& region, std::int64_t group, std::int64_t blocks, std::uint8_t* scratch) {
  if (region.data == nullptr) return;
  with_values(region, [&](auto* values) {
    auto* rows = values + group * blocks * kGroupRows;
    const auto bytes = static_cast<std::size_t>(blocks * kGroupRows) * sizeof *rows;
    std::memcpy(scratch, rows, bytes);
    arrange_values(reinterpret_cast<decltype(rows)>(scratch), kGroupRows, blocks, rows);
  });
}

// In place. A group is copied first: that reads it in order, and rows that are a power of two apart then come from the
// cache.
void arrange_group_codes(const Arrangement& weight, std::int64_t group, std::uint8_t* scratch) {
  std::uint8_t* rows = weight.codes + group * weight.group_bytes();
  std::memcpy(scratch, rows, static_cast<std::size_t>(weight.group_bytes()));
  (weight.is_code4 ? arrange_whole_group<true> : arrange_whole_group<false>)(scratch, weight.row_bytes, rows);
}

void arrange_groups(const Arrangement& weight, Range groups, std::uint8_t* scratch) {
  for (std::int64_t group = groups.begin; group < groups.end; group++) {
    if (!weight.in_groups) arrange_group_codes(weight, group, scratch);
    arrange_group_values(weight.scales, group, weight.blocks, scratch);
    arrange_group_values(weight.minimums, group, weight.blocks, scratch);
  }
}

// The values of the rows after the last whole group, to `tail`.
void arrange_tail_values(const Region& region, const Arrangement& weight, std::byte* tail) {
  if (region.data == nullptr) return;
  const std::int64_t first = weight.groups() * kGroupRows;
  with_values(region, [&](auto* values) {
    arrange_values(values + first * weight.blocks, weight.outputs - first, weight.blocks,
                   reinterpret_cast<decltype(values)>(tail));
  });
}

// All whole groups, on all threads; on this one alone, with the scratch memory `group`, where a group is longer than a
// thread's workspace.
void arrange_all_groups(AddonInstance& instance, const Arrangement& weight, std::uint8_t* group) {
  const std::int64_t longest = std::max(weight.group_bytes(), weight.value_group_bytes());
  if (longest > static_cast<std::int64_t>(kWorkspaceBytes) || instance.workspace == nullptr) {
    return arrange_groups(weight, Range{0, weight.groups()}, group);
  }
  const Work work = {weight.groups(), 1, static_cast<double>(weight.group_bytes()) * kNsPerArrangedByte};
  instance.parallel(work, [&](Range range, void* workspace) {
    arrange_groups(weight, range, static_cast<std::uint8_t*>(workspace));
  });
}

}  // namespace

QuantizedBuffer::~QuantizedBuffer() { ::operator delete(data_, kAlignment); }

QuantizedRows QuantizedBuffer::reserve(std::int64_t rows, std::int64_t inputs, std::int64_t block,
                                       std::int64_t code_bytes) {
  const std::int64_t blocks = inputs / block;
  const std::int64_t stride = row_stride(inputs * code_bytes);
  const std::size_t values = static_cast<std::size_t>(rows * blocks) * sizeof(float);
  const std::size_t needed = static_cast<std::size_t>(rows * stride) + 3 * values;
  if (needed > bytes_) {
    ::operator delete(data_, kAlignment);
    data_ = static_cast<std::byte*>(::operator new(needed, kAlignment, std::nothrow));
    bytes_ = data_ == nullptr ? 0 : needed;
  }
  if (data_ == nullptr) return QuantizedRows{};
  std::byte* after = data_ + rows * stride;
  return {
      .codes = data_,
      .code_stride = stride,
      .scales = reinterpret_cast<float*>(after),
      .sums = reinterpret_cast<float*>(after + values),
      .starts = reinterpret_cast<std::int32_t*>(after + 2 * values),
      .blocks = blocks,
      .block = block,
  };
}

bool quantize_codebook(ArrangedCode4& weight, const float* codebook) {
  std::memcpy(weight.codebook, codebook, sizeof weight.codebook);
  const bool rounded = quantize_entries(codebook, kCodebook16Limit, weight.codebook16, weight.step16) &&
                       quantize_entries(codebook, kCodebook8Limit, weight.codebook8, weight.step8);
  if (!rounded) return false;
  weight.steps16 = steps_of(weight.codebook16);
  weight.steps8 = steps_of(weight.codebook8);
  return true;
}

bool arrange(AddonInstance& instance, PreparedWeight& weight, const Region& codes, const Region& scales,
             const Region& minimums, std::int64_t inputs, std::int64_t block_size, bool in_groups) {
  const std::int64_t row_bytes = codes.columns;
  const std::int64_t blocks = inputs / block_size;
  const std::size_t group_bytes = static_cast<std::size_t>(row_bytes * kGroupRows);
  const std::size_t value_bytes = static_cast<std::size_t>(blocks * kGroupRows) * dtype_bytes(scales.dtype);
  const bool has_tail = codes.rows % kGroupRows != 0;
  const std::size_t part = group_bytes + 2 * value_bytes;
  const std::unique_ptr<std::byte[]> scratch(new (std::nothrow) std::byte[part]);
  weight.tail.reset(has_tail ? new (std::nothrow) std::byte[part] : nullptr);
  if (scratch == nullptr || (has_tail && weight.tail == nullptr)) return false;

  std::byte* tail = weight.tail.get();
  auto* tail_codes = reinterpret_cast<std::uint8_t*>(tail);
  std::byte* tail_scales = tail == nullptr ? nullptr : tail + group_bytes;
  std::byte* tail_minimums = tail == nullptr || minimums.data == nullptr ? nullptr : tail + group_bytes + value_bytes;
  const Arrangement arrangement = {.codes = static_cast<std::uint8_t*>(codes.data),
                                   .scales = scales,
                                   .minimums = minimums,
                                   .outputs = codes.rows,
                                   .row_bytes = row_bytes,
                                   .blocks = blocks,
                                   .is_code4 = weight.is_code4,
                                   .in_groups = in_groups};
  arrange_all_groups(instance, arrangement, reinterpret_cast<std::uint8_t*>(scratch.get()));
  if (has_tail) {
    const std::int64_t first = arrangement.groups() * kGroupRows;
    arrange_codes(arrangement.codes + first * row_bytes, codes.rows - first, row_bytes, weight.is_code4, tail_codes);
    arrange_tail_values(scales, arrangement, tail_scales);
    arrange_tail_values(minimums, arrangement, tail_minimums);
  }
  ArrangedMatrix& matrix = weight.is_code4 ? static_cast<ArrangedMatrix&>(weight.code4) : weight.int8;
  matrix = {
      .codes = static_cast<const std::uint8_t*>(codes.data),
      .scales = scales.data,
      .minimums = minimums.data,
      .tail_codes = tail_codes,
      .tail_scales = tail_scales,
      .tail_minimums = tail_minimums,
      .value_dtype = scales.dtype,
      .outputs = codes.rows,
      .inputs = inputs,
      .block_size = block_size,
      .group_bytes = static_cast<std::int64_t>(group_bytes),
  };
  return true;
}

WeightTable::~WeightTable() {
  for (const auto& weight : weights_) {
    if (weight != nullptr) forget(*weight);
  }
}

std::int32_t WeightTable::add(std::unique_ptr<PreparedWeight> weight) {
  for (int i = 0; i < 3; i++) {
    weight->views[i] = nullptr;
    if (weight->regions[i].data == nullptr) continue;
    napi_value view = nullptr;
    if (napi_get_reference_value(env_, weight->regions[i].view, &view) != napi_ok ||
        napi_create_reference(env_, view, 1, &weight->views[i]) != napi_ok) {
      forget(*weight);
      return 0;
    }
  }
  try {
    weights_.emplace_back();
  } catch (const std::bad_alloc&) {
    forget(*weight);
    return 0;
  }
  weights_.back() = std::move(weight);
  return static_cast<std::int32_t>(weights_.size());
}

bool WeightTable::release(double handle) {
  if (find(handle) == nullptr) return false;
  std::unique_ptr<PreparedWeight>& weight = weights_[static_cast<std::size_t>(handle) - 1];
  forget(*weight);
  weight.reset();
  return true;
}

const PreparedWeight* WeightTable::find(double handle) const {
  // The comparison also refuses NaN.
  if (!(handle >= 1.0 && handle <= static_cast<double>(weights_.size()))) return nullptr;
  const auto index = static_cast<std::size_t>(handle);
  return static_cast<double>(index) == handle ? weights_[index - 1].get() : nullptr;
}

bool WeightTable::holds(const Region& region) const {
  const auto* begin = static_cast<const std::byte*>(region.data);
  for (const auto& weight : weights_) {
    if (weight == nullptr) continue;
    for (const Region& held : weight->regions) {
      const auto* held_begin = static_cast<const std::byte*>(held.data);
      if (begin < held_begin + held.bytes && held_begin < begin + region.bytes) return true;
    }
  }
  return false;
}

void WeightTable::forget(PreparedWeight& weight) {
  for (napi_ref& view : weight.views) {
    if (view != nullptr) napi_delete_reference(env_, view);
    view = nullptr;
  }
}

}  // namespace shardloom
