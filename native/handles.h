// Regions of memory that JavaScript has bound, and the handles it knows them by.
//
// One table per napi_env: every thread that loads the addon has its own, nothing here is shared between threads. A
// handle carries the index of its slot and the generation of its tenant, so a released or invented handle is
// recognised and never reaches memory. A slot whose generations are used up is retired, so no handle comes back.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.h"

namespace shardloom {

// Elements of a bound tensor, row-major `[rows, columns]`; a vector has one row. Aligned to its elements; tensors of an
// arena, to 64 bytes.
struct Region {
  void* data;
  std::size_t bytes;
  DType dtype;
  std::int64_t rows;
  std::int64_t columns;
  napi_ref view;  // through which JavaScript owns the memory: the table's reference
};

class HandleTable {
 public:
  explicit HandleTable(napi_env env) : env_(env) {}
  ~HandleTable();
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // Registers a region and keeps `view`, through which JavaScript owns its memory, alive until release. Returns 0 when
  // the table is full or memory is short. Handles are positive and below 2^31: V8 passes them without an allocation.
  std::int32_t bind(napi_value view, const Region& region);
  // False when the handle is not bound.
  bool release(double handle);
  // Null when the handle is not bound. The pointer is good until the next bind or release.
  const Region* find(double handle) const;

 private:
  struct Slot {
    Region region;  // its view is null while the slot has no tenant
    std::int32_t generation;
  };

  napi_env env_;
  std::vector<Slot> slots_;
  std::vector<std::int32_t> free_;
};

}  // namespace shardloom
