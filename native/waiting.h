// What threads wait with: a pause while they spin, and sleep on a word of memory while they do not.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace shardloom {

// How a thread waits: it spins, then yields its core, each for so long, then parks until it is woken.
struct WaitingPolicy {
  std::uint32_t spin_micros;
  std::uint32_t yield_micros;
};

// Tells the core that the thread spins.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Sleeps while *word, which all threads access atomically, is `expected`, until it is woken or `limit` is over; may wake
// for no reason.
void park(std::uint32_t* word, std::uint32_t expected, std::chrono::nanoseconds limit);

// Wakes every thread of this process that is parked on the word.
void unpark_all(std::uint32_t* word);

// The same without a limit, and for a single thread that is parked.
void park(std::atomic<std::uint32_t>& word, std::uint32_t expected);
void unpark(std::atomic<std::uint32_t>& word);

}  // namespace shardloom
