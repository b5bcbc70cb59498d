// A number that one thread posts and another one waits for.
#pragma once

#include <atomic>
#include <cstdint>

#include "waiting.h"

namespace shardloom {

class PostedNumber {
 public:
  // Stores a number that differs from the last one, and all that was written before it. `wake` must follow.
  void post(std::uint32_t value) { value_.store(value, std::memory_order_release); }

  // Wakes the waiter if it is parked. Between `post` and this the caller executes `fence`: one serves many posts.
  void wake();

  // Returns as soon as the number differs from `old`: the number.
  std::uint32_t wait(std::uint32_t old, const WaitingPolicy& policy);

  // No wake-up is lost: the waiter announces that it parks, then looks at the number; who posts stores the number, then
  // looks for announcements. With all four in a single order at least one of the two sees the other.
  static void fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

 private:
  bool spin(std::uint32_t old, const WaitingPolicy& policy) const;

  std::atomic<std::uint32_t> value_{0};
  std::atomic<std::uint32_t> parked_{0};
};

}  // namespace shardloom
