#include "thread_place.h"

#include <climits>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace shardloom {

#if defined(__linux__)

namespace {

// From linux/mempolicy.h, which not every system installs.
constexpr int kPreferred = 1;
constexpr int kMaxNodes = 1024;
constexpr int kBitsPerWord = CHAR_BIT * sizeof(unsigned long);

}  // namespace

bool keep_to_cpus(const std::int32_t* cpus, int count) {
  std::int32_t highest = 0;
  for (int i = 0; i < count; i++) highest = cpus[i] > highest ? cpus[i] : highest;
  cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(highest) + 1);
  if (set == nullptr) return false;
  const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(highest) + 1);
  CPU_ZERO_S(bytes, set);
  for (int i = 0; i < count; i++) CPU_SET_S(static_cast<std::size_t>(cpus[i]), bytes, set);
  // 0 is the calling thread, not the process.
  const bool kept = sched_setaffinity(0, bytes, set) == 0;
  CPU_FREE(set);
  return kept;
}

bool prefer_node(int node) {
  if (node < 0 || node >= kMaxNodes) return false;
  unsigned long mask[kMaxNodes / kBitsPerWord] = {};
  mask[node / kBitsPerWord] = 1ul << (node % kBitsPerWord);
  return syscall(SYS_set_mempolicy, kPreferred, mask, static_cast<unsigned long>(kMaxNodes)) == 0;
}

std::int64_t thread_id() { return syscall(SYS_gettid); }

#else

std::int64_t thread_id() { return -1; }
bool keep_to_cpus(const std::int32_t*, int) { return false; }
bool prefer_node(int) { return false; }

#endif

}  // namespace shardloom
