// Weights that the addon has taken over: arranged where they are, checked once, and known by one number.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "handles.h"
#include "kernels/kernels.h"

namespace shardloom {

struct AddonInstance;

// Memory that grows and never shrinks, aligned to 64 bytes. What it held is lost when it grows.
class QuantizedBuffer {
 public:
  QuantizedBuffer() = default;
  ~QuantizedBuffer();
  QuantizedBuffer(const QuantizedBuffer&) = delete;
  QuantizedBuffer& operator=(const QuantizedBuffer&) = delete;

  // Room for rows of x of so many inputs, in blocks of `block`, as codes of `code_bytes`; `codes` is null when memory is
  // short.
  QuantizedRows reserve(std::int64_t rows, std::int64_t inputs, std::int64_t block, std::int64_t code_bytes);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Which level a weight is multiplied at. `automatic` is int16 at present, for any number of rows.
enum class Activations { int16 = 1, int8 = 2, automatic = 3 };

struct PreparedWeight {
  bool is_code4;
  Activations activations;
  // The one that `is_code4` says.
  ArrangedCode4 code4;
  ArrangedInt8 int8;
  Region regions[3];  // codes, scales, minimums
  napi_ref views[3];  // keep their memory alive
  // Codes, scales and minimums of the rows after the last whole group.
  std::unique_ptr<std::byte[]> tail;

  const ArrangedMatrix& matrix() const { return is_code4 ? static_cast<const ArrangedMatrix&>(code4) : int8; }
};

// Puts a weight in order where it is, on the threads of `instance`; with `in_groups`, the codes of its whole groups are in
// order. False, with nothing changed, when memory is short.
bool arrange(AddonInstance& instance, PreparedWeight& weight, const Region& codes, const Region& scales,
             const Region& minimums, std::int64_t inputs, std::int64_t block_size, bool in_groups);

// Whole numbers for the entries of a codebook. False when an entry is no number or too close to 0 to be kept.
bool quantize_codebook(ArrangedCode4& weight, const float* codebook);

// A number stands for one weight and no other, ever.
class WeightTable {
 public:
  explicit WeightTable(napi_env env) : env_(env) {}
  ~WeightTable();
  WeightTable(const WeightTable&) = delete;
  WeightTable& operator=(const WeightTable&) = delete;

  // 0 when memory is short.
  std::int32_t add(std::unique_ptr<PreparedWeight> weight);
  bool release(double handle);
  // Null when no weight has this number.
  const PreparedWeight* find(double handle) const;
  // Whether a region shares bytes with a weight of the table.
  bool holds(const Region& region) const;

 private:
  void forget(PreparedWeight& weight);

  napi_env env_;
  std::vector<std::unique_ptr<PreparedWeight>> weights_;
};

}  // namespace shardloom
