#include "posted_number.h"

#include <chrono>
#include <thread>

namespace shardloom {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSpinsBetweenLooks = 32;

}  // namespace

void PostedNumber::wake() {
  if (parked_.load(std::memory_order_relaxed) == 0) return;
  unpark(value_);
}

// Whether the number changed while spinning and yielding.
bool PostedNumber::spin(std::uint32_t old, const WaitingPolicy& policy) const {
  const auto changed = [&] { return value_.load(std::memory_order_relaxed) != old; };
  if (changed()) return true;
  const Clock::time_point start = Clock::now();
  const auto spin_end = start + std::chrono::microseconds(policy.spin_micros);
  const auto yield_end = spin_end + std::chrono::microseconds(policy.yield_micros);
  for (Clock::time_point now = start; now < yield_end; now = Clock::now()) {
    if (now >= spin_end) std::this_thread::yield();
    for (int i = 0; i < kSpinsBetweenLooks; i++) {
      if (changed()) return true;
      if (now >= spin_end) break;
      relax();
    }
  }
  return false;
}

std::uint32_t PostedNumber::wait(std::uint32_t old, const WaitingPolicy& policy) {
  if (!spin(old, policy)) {
    parked_.store(1, std::memory_order_relaxed);
    fence();
    while (value_.load(std::memory_order_relaxed) == old) park(value_, old);
    parked_.store(0, std::memory_order_relaxed);
  }
  return value_.load(std::memory_order_acquire);
}

}  // namespace shardloom
