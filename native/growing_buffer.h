// Memory that is kept from call to call, so that a call allocates only when it needs more than any before it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace shardloom {

// Plain elements, aligned to 64 bytes. What it holds is lost when it grows.
template <class T>
class GrowingBuffer {
 public:
  GrowingBuffer() = default;
  ~GrowingBuffer() { ::operator delete(data_, kAlignment); }
  GrowingBuffer(const GrowingBuffer&) = delete;
  GrowingBuffer& operator=(const GrowingBuffer&) = delete;

  // Room for `count` elements, uninitialized where it had to grow; null when there is no memory.
  T* reserve(std::int64_t count) {
    if (count <= capacity_) return data_;
    const std::int64_t capacity = count + count / 2;
    void* grown = ::operator new(static_cast<std::size_t>(capacity) * sizeof(T), kAlignment, std::nothrow);
    if (grown == nullptr) return nullptr;
    ::operator delete(data_, kAlignment);
    data_ = static_cast<T*>(grown);
    capacity_ = capacity;
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  T* data_ = nullptr;
  std::int64_t capacity_ = 0;
};

}  // namespace shardloom
