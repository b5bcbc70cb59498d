#include "collectives_probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "prefetch.h"

namespace shardloom {
namespace {

using std::size_t;
using std::uint32_t;
using Clock = std::chrono::steady_clock;
using Word = std::atomic_ref<uint32_t>;

constexpr size_t kLineBytes = 64;
constexpr size_t kLineWords = kLineBytes / sizeof(uint32_t);
// Flags two lines apart, so that no core fetches one with the other; buffers out of each other's cache sets.
constexpr size_t kFlagWords = 2 * kLineWords;
constexpr size_t kPaddingWords = 6 * kLineWords;
constexpr size_t kLinesAhead = 32;
constexpr int kSpinsBetweenLooks = 1024;
constexpr auto kPatience = std::chrono::seconds(1);

size_t stride(size_t lines) { return lines * kLineWords + kPaddingWords; }

bool wait_for(uint32_t* flag, uint32_t round) {
  const Clock::time_point start = Clock::now();
  for (;;) {
    for (int i = 0; i < kSpinsBetweenLooks; i++) {
      if (static_cast<std::int32_t>(Word(*flag).load(std::memory_order_acquire) - round) >= 0) return true;
    }
    if (Clock::now() - start > kPatience) return false;
    std::this_thread::yield();
  }
}

void write_lines(uint32_t* buffer, size_t lines, uint32_t value) { std::fill_n(buffer, lines * kLineWords, value); }

uint32_t read_lines(const uint32_t* buffer, size_t lines) {
  for (size_t line = 0; line < std::min(lines, kLinesAhead); line++) prefetch(buffer + line * kLineWords);
  uint32_t sums[kLineWords] = {};
  for (size_t line = 0; line < lines; line++) {
    if (line + kLinesAhead < lines) prefetch(buffer + (line + kLinesAhead) * kLineWords);
    for (size_t i = 0; i < kLineWords; i++) sums[i] += buffer[line * kLineWords + i];
  }
  uint32_t sum = 0;
  for (const uint32_t each : sums) sum += each;
  return sum;
}

}  // namespace

size_t exchange_bytes(size_t lines) { return (2 * kFlagWords + 4 * stride(lines)) * sizeof(uint32_t); }

double exchange_lines(void* memory, uint32_t side, size_t lines, uint32_t rounds) {
  auto* words = static_cast<uint32_t*>(memory);
  uint32_t* own = words + side * kFlagWords;
  uint32_t* other = words + (1 - side) * kFlagWords;
  const auto buffer = [&](uint32_t of, uint32_t round) {
    return words + 2 * kFlagWords + (2 * of + (round & 1)) * stride(lines);
  };
  // Flags count rounds on from call to call; the first round, in which one side waits for the other to begin, is not
  // timed.
  const uint32_t first = Word(*own).load(std::memory_order_relaxed) + 1;
  Clock::time_point start;
  uint32_t sum = 0;
  for (uint32_t i = 0; i <= rounds; i++) {
    if (i == 1) start = Clock::now();
    const uint32_t round = first + i;
    write_lines(buffer(side, round), lines, round);
    Word(*own).store(round, std::memory_order_release);
    if (!wait_for(other, round)) return -1;
    sum += read_lines(buffer(1 - side, round), lines);
  }
  const Clock::time_point end = Clock::now();
  // Kept, so that no compiler drops the reading.
  own[kLineWords] = sum;
  return std::chrono::duration<double, std::nano>(end - start).count() / rounds;
}

}  // namespace shardloom
