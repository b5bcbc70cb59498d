#include "handles.h"

#include <new>

namespace shardloom {
namespace {

constexpr int kIndexBits = 20;
constexpr std::int32_t kIndexMask = (1 << kIndexBits) - 1;
constexpr std::int32_t kLastGeneration = (1 << (31 - kIndexBits)) - 1;

}  // namespace

HandleTable::~HandleTable() {
  for (const Slot& slot : slots_) {
    if (slot.region.view != nullptr) napi_delete_reference(env_, slot.region.view);
  }
}

std::int32_t HandleTable::bind(napi_value view, const Region& region) {
  try {
    if (free_.empty()) {
      if (slots_.size() > static_cast<std::size_t>(kIndexMask)) return 0;
      // Room for every slot to be free at once, so that release never allocates.
      if (free_.capacity() <= slots_.size()) free_.reserve(2 * slots_.size() + 64);
      slots_.push_back(Slot{Region{}, 0});
      free_.push_back(static_cast<std::int32_t>(slots_.size() - 1));
    }
  } catch (const std::bad_alloc&) {
    return 0;
  }
  const std::int32_t index = free_.back();
  Slot& slot = slots_[static_cast<std::size_t>(index)];
  napi_ref reference = nullptr;
  if (napi_create_reference(env_, view, 1, &reference) != napi_ok) return 0;
  free_.pop_back();
  slot = Slot{region, slot.generation + 1};
  slot.region.view = reference;
  return (slot.generation << kIndexBits) | index;
}

bool HandleTable::release(double handle) {
  if (find(handle) == nullptr) return false;
  const std::int32_t index = static_cast<std::int32_t>(handle) & kIndexMask;
  Slot& slot = slots_[static_cast<std::size_t>(index)];
  napi_delete_reference(env_, slot.region.view);
  slot.region = Region{};
  if (slot.generation < kLastGeneration) free_.push_back(index);
  return true;
}

const Region* HandleTable::find(double handle) const {
  // The comparison also refuses NaN, which must not be converted to an integer.
  if (!(handle >= 1.0 && handle <= 2147483647.0)) return nullptr;
  const std::int32_t number = static_cast<std::int32_t>(handle);
  const std::size_t index = static_cast<std::size_t>(number & kIndexMask);
  if (index >= slots_.size() || static_cast<double>(number) != handle) return nullptr;
  const Slot& slot = slots_[index];
  return slot.region.view != nullptr && slot.generation == (number >> kIndexBits) ? &slot.region : nullptr;
}

}  // namespace shardloom
