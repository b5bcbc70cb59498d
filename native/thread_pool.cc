#include "thread_pool.h"

#include <algorithm>
#include <new>
#include <system_error>
#include <thread>

#include "posted_number.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif

namespace shardloom {
namespace {

// Two cache lines: the processors of some makes fetch them in pairs, and those of others have lines of this size.
constexpr std::size_t kLineBytes = 128;
constexpr std::align_val_t kWorkspaceAlignment{64};

// What a part must take at least. Handing it over and hearing of its end costs about 1 us while the helper spins.
constexpr double kLeastPartNs = 2000;

struct Workspace {
  explicit Workspace(std::size_t bytes) : memory(::operator new(bytes, kWorkspaceAlignment, std::nothrow)) {}
  ~Workspace() { ::operator delete(memory, kWorkspaceAlignment); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* memory;
};

// While it lives, threads that start here take no signal: those are for the threads of Node.js.
class SignalsBlocked {
 public:
#if defined(__unix__) || defined(__APPLE__)
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
#else
  SignalsBlocked() {}
#endif
};

// What debuggers and profilers call the calling thread.
void name_thread() {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "shardloom");
#elif defined(__APPLE__)
  pthread_setname_np("shardloom");
#endif
}

}  // namespace

struct ThreadPool::Helper {
  explicit Helper(std::size_t workspace_bytes) : workspace(workspace_bytes) {}

  void serve(const WaitingPolicy& policy) {
    name_thread();
    std::uint32_t sequence = 0;
    for (;;) {
      sequence = posted.wait(sequence, policy);
      if (task == nullptr) return;
      task(context, range, workspace.memory);
      done.post(sequence);
      PostedNumber::fence();
      done.wake();
    }
  }

  // The caller's line: a task, or null for the end.
  alignas(kLineBytes) PostedNumber posted;
  std::uint32_t sequence = 0;
  Task task = nullptr;
  const void* context = nullptr;
  Range range = {0, 0};
  // The helper's line.
  alignas(kLineBytes) PostedNumber done;

  alignas(kLineBytes) Workspace workspace;
  std::thread thread;
};

ThreadPool::ThreadPool(WaitingPolicy policy) : policy_(policy) {}

std::unique_ptr<ThreadPool> ThreadPool::start(int threads, std::size_t workspace_bytes, WaitingPolicy policy) {
  try {
    std::unique_ptr<ThreadPool> pool(new ThreadPool(policy));
    pool->helpers_.reserve(static_cast<std::size_t>(threads - 1));
    const SignalsBlocked blocked;
    while (pool->threads() < threads) {
      if (!pool->add_helper(workspace_bytes)) return nullptr;
    }
    return pool;
  } catch (const std::bad_alloc&) {
    return nullptr;
  } catch (const std::system_error&) {
    return nullptr;
  }
}

bool ThreadPool::add_helper(std::size_t workspace_bytes) {
  auto helper = std::make_unique<Helper>(workspace_bytes);
  if (helper->workspace.memory == nullptr) return false;
  helper->thread = std::thread([helper = helper.get(), policy = policy_] { helper->serve(policy); });
  helpers_.push_back(std::move(helper));
  return true;
}

ThreadPool::~ThreadPool() {
  for (const auto& helper : helpers_) {
    helper->task = nullptr;
    helper->posted.post(++helper->sequence);
  }
  PostedNumber::fence();
  for (const auto& helper : helpers_) helper->posted.wake();
  for (const auto& helper : helpers_) helper->thread.join();
}

int ThreadPool::parts_of(const Work& work) const {
  const std::int64_t groups = (work.count + work.grain - 1) / work.grain;
  const double worth = static_cast<double>(work.count) * work.item_ns / kLeastPartNs;
  const auto limit = static_cast<std::int64_t>(std::min(worth, static_cast<double>(threads())));
  return static_cast<int>(std::max<std::int64_t>(1, std::min(groups, limit)));
}

Range ThreadPool::part_of(const Work& work, int part, int parts) {
  const std::int64_t groups = (work.count + work.grain - 1) / work.grain;
  const auto begin = [&](int at) { return std::min(work.count, (groups * at + parts - 1) / parts * work.grain); };
  return {begin(part), begin(part + 1)};
}

void ThreadPool::run(const Work& work, int parts, Task task, const void* context, void* workspace) {
  for (int part = 1; part < parts; part++) {
    Helper& helper = *helpers_[static_cast<std::size_t>(part - 1)];
    helper.task = task;
    helper.context = context;
    helper.range = part_of(work, part, parts);
    helper.posted.post(++helper.sequence);
  }
  PostedNumber::fence();
  for (int part = 1; part < parts; part++) helpers_[static_cast<std::size_t>(part - 1)]->posted.wake();
  task(context, part_of(work, 0, parts), workspace);
  for (int part = 1; part < parts; part++) {
    Helper& helper = *helpers_[static_cast<std::size_t>(part - 1)];
    helper.done.wait(helper.sequence - 1, policy_);
  }
}

}  // namespace shardloom
