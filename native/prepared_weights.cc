#include "prepared_weights.h"

#include <cfloat>
#include <cmath>
#include <new>
#include <type_traits>

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

// A scale that makes whole numbers of up to `limit` of all entries: a power of two if one makes them exactly, otherwise
// the one that takes the largest to the limit.
double codebook_scale(const float* codebook, double largest, double limit) {
  double scale = 1;
  while (largest * scale * 2 <= limit) scale *= 2;
  while (largest * scale > limit) scale /= 2;
  for (int i = 0; i < 16; i++) {
    const double entry = codebook[i] * scale;
    if (entry != std::nearbyint(entry)) return limit / largest;
  }
  return scale;
}

template <class Code>
bool quantize_entries(const float* codebook, std::int32_t limit, Code (&codes)[16], float& step) {
  double largest = 0;
  for (int i = 0; i < 16; i++) {
    if (!std::isfinite(codebook[i])) return false;
    largest = std::fmax(largest, std::fabs(static_cast<double>(codebook[i])));
  }
  const double scale = largest == 0 ? 1 : codebook_scale(codebook, largest, limit);
  for (int i = 0; i < 16; i++) codes[i] = static_cast<Code>(std::nearbyint(codebook[i] * scale));
  step = static_cast<float>(1 / scale);
  return std::isfinite(step) && step >= FLT_MIN;
}

// Arranges values of whole groups in place; the rows after them go to `tail`. A Value is as wide as one of them.
template <class Value>
void arrange_all_values(Value* values, std::int64_t outputs, std::int64_t blocks, Value* group, Value* tail) {
  std::int64_t row = 0;
  for (; row + kGroupRows <= outputs; row += kGroupRows) {
    arrange_values(values + row * blocks, kGroupRows, blocks, group);
    std::memcpy(values + row * blocks, group, static_cast<std::size_t>(kGroupRows * blocks) * sizeof(Value));
  }
  if (row < outputs) arrange_values(values + row * blocks, outputs - row, blocks, tail);
}

void arrange_all_values(const Region& region, std::int64_t outputs, std::int64_t blocks, std::byte* group,
                        std::byte* tail) {
  if (region.data == nullptr) return;
  const auto arrange_as = [&](auto* values) {
    using Value = std::remove_pointer_t<decltype(values)>;
    arrange_all_values(values, outputs, blocks, reinterpret_cast<Value*>(group), reinterpret_cast<Value*>(tail));
  };
  if (region.dtype == DType::f16) return arrange_as(static_cast<std::uint16_t*>(region.data));
  arrange_as(static_cast<std::uint32_t*>(region.data));
}

// A group is copied first: that reads it in order, and rows that are a power of two apart then come from the cache.
void arrange_groups(std::uint8_t* codes, std::int64_t row_bytes, bool code4, Range groups, std::uint8_t* scratch) {
  const std::int64_t group_bytes = row_bytes * kGroupRows;
  for (std::int64_t group = groups.begin; group < groups.end; group++) {
    std::uint8_t* rows = codes + group * group_bytes;
    std::memcpy(scratch, rows, static_cast<std::size_t>(group_bytes));
    (code4 ? arrange_whole_group<true> : arrange_whole_group<false>)(scratch, row_bytes, rows);
  }
}

// On all threads; on this one alone, with the scratch memory `group`, where a group is longer than a thread's workspace.
void arrange_all_codes(AddonInstance& instance, std::uint8_t* codes, std::int64_t outputs, std::int64_t row_bytes,
                       bool code4, std::uint8_t* group, std::uint8_t* tail) {
  const std::int64_t group_bytes = row_bytes * kGroupRows;
  const std::int64_t groups = outputs / kGroupRows;
  const std::int64_t left = outputs - groups * kGroupRows;
  if (group_bytes > static_cast<std::int64_t>(kWorkspaceBytes) || instance.workspace == nullptr) {
    arrange_groups(codes, row_bytes, code4, Range{0, groups}, group);
  } else {
    const Work work = {groups, 1, static_cast<double>(group_bytes) * kNsPerArrangedByte};
    instance.parallel(work, [&](Range range, void* workspace) {
      arrange_groups(codes, row_bytes, code4, range, static_cast<std::uint8_t*>(workspace));
    });
  }
  if (left > 0) arrange_codes(codes + groups * group_bytes, left, row_bytes, code4, tail);
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
  return quantize_entries(codebook, kCodebook16Limit, weight.codebook16, weight.step16) &&
         quantize_entries(codebook, kCodebook8Limit, weight.codebook8, weight.step8);
}

bool arrange(AddonInstance& instance, PreparedWeight& weight, const Region& codes, const Region& scales,
             const Region& minimums, std::int64_t inputs, std::int64_t block_size) {
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
  auto* group = reinterpret_cast<std::uint8_t*>(scratch.get());
  auto* tail_codes = reinterpret_cast<std::uint8_t*>(tail);
  std::byte* tail_scales = tail == nullptr ? nullptr : tail + group_bytes;
  std::byte* tail_minimums = tail == nullptr || minimums.data == nullptr ? nullptr : tail + group_bytes + value_bytes;
  arrange_all_codes(instance, static_cast<std::uint8_t*>(codes.data), codes.rows, row_bytes, weight.is_code4, group,
                    tail_codes);
  arrange_all_values(scales, codes.rows, blocks, scratch.get(), tail_scales);
  arrange_all_values(minimums, codes.rows, blocks, scratch.get(), tail_minimums);
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
