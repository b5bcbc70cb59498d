// Pools of many sizes share thousands of calls of changing size, with every way to wait, idle in between and end in the
// middle of it. Built with the thread sanitizer by scripts/sanitize.mjs. Prints what went wrong and exits with 1.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "../thread_pool.h"

namespace {

using namespace shardloom;

constexpr int kCalls = 3000;
constexpr std::size_t kWorkspaceBytes = 4096;
constexpr std::int64_t kMostItems = 300;

int failures = 0;

void expect(bool condition, const char* what, int threads, const WaitingPolicy& policy, int call) {
  if (condition || failures++ >= 10) return;
  std::fprintf(stderr, "%s: call %d on %d threads, spin %u us, yield %u us\n", what, call, threads, policy.spin_micros,
               policy.yield_micros);
}

struct Call {
  std::vector<int>* counts;
  int number;
};

// Not atomic on purpose: two threads that meet in an item, or a caller that returns early, make a race.
void count(const void* context, Range range, void* workspace) {
  const Call& call = *static_cast<const Call*>(context);
  std::memset(workspace, call.number, kWorkspaceBytes);
  for (std::int64_t i = range.begin; i < range.end; i++) (*call.counts)[static_cast<std::size_t>(i)] += call.number;
}

void run(int threads, const WaitingPolicy& policy) {
  const auto pool = ThreadPool::start(threads, kWorkspaceBytes, policy);
  expect(pool != nullptr && pool->threads() == threads, "start", threads, policy, -1);
  if (pool == nullptr) return;
  std::vector<std::byte> workspace(kWorkspaceBytes);
  std::vector<int> counts(kMostItems);
  std::vector<int> expected(kMostItems);
  for (int number = 0; number < kCalls; number++) {
    const std::int64_t items = number * 37 % kMostItems;
    const Work work = {items, 1 + number % 16, 1e6};
    const Call call = {&counts, number};
    const int parts = 1 + number % pool->parts_of(work);
    pool->run(work, parts, count, &call, workspace.data());
    for (std::int64_t i = 0; i < items; i++) expected[static_cast<std::size_t>(i)] += number;
    expect(counts == expected, "counts", threads, policy, number);
    // Long enough for helpers to park now and then; nothing depends on whether they do.
    if (number % 200 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void check_parts(std::int64_t count, std::int64_t grain, int parts) {
  const Work work = {count, grain, 0};
  const std::int64_t groups = (count + grain - 1) / grain;
  std::int64_t next = 0;
  for (int part = 0; part < parts; part++) {
    const Range range = ThreadPool::part_of(work, part, parts);
    const bool right = range.begin == next && range.begin <= range.end && (range.end % grain == 0 || range.end == count);
    expect(right, "part", parts, {}, part);
    // The caller's part is as large as any; none is more than a group larger than another.
    const std::int64_t own = (range.end - range.begin + grain - 1) / grain;
    expect(part == 0 ? own == (groups + parts - 1) / parts : own == groups / parts || own == (groups + parts - 1) / parts,
           "size of part", parts, {}, part);
    next = range.end;
  }
  expect(next == count, "end of parts", parts, {}, static_cast<int>(count));
}

}  // namespace

int main() {
  for (std::int64_t count = 0; count < 70; count++) {
    for (const std::int64_t grain : {1, 2, 16}) {
      for (int parts = 1; parts < 9; parts++) check_parts(count, grain, parts);
    }
  }
  for (const WaitingPolicy policy : {WaitingPolicy{0, 0}, {0, 100}, {20, 50}, {200, 0}}) {
    for (const int threads : {1, 2, 3, 5, 8}) run(threads, policy);
  }
  return failures == 0 ? 0 : 1;
}
