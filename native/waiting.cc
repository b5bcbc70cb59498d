#include "waiting.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#else
#include <algorithm>
#include <thread>
#endif

namespace shardloom {

#if defined(__linux__)

void park(std::uint32_t* word, std::uint32_t expected, std::chrono::nanoseconds limit) {
  timespec timeout{};
  timeout.tv_sec = static_cast<time_t>(limit.count() / 1'000'000'000);
  timeout.tv_nsec = static_cast<long>(limit.count() % 1'000'000'000);
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &timeout, nullptr, 0);
}

void unpark_all(std::uint32_t* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

void park(std::atomic<std::uint32_t>& word, std::uint32_t expected) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void unpark(std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

#else

// Without a timed wait on an address, a parked thread polls: short sleeps keep the delay below a scheduler tick.
void park(std::uint32_t*, std::uint32_t, std::chrono::nanoseconds limit) {
  std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(limit, std::chrono::microseconds(50)));
}

void unpark_all(std::uint32_t*) {}

void park(std::atomic<std::uint32_t>& word, std::uint32_t expected) { word.wait(expected); }

void unpark(std::atomic<std::uint32_t>& word) { word.notify_one(); }

#endif

}  // namespace shardloom
