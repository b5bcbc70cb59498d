// The threads of one rank: the thread that calls kernels, and helpers that share its calls.
//
// A call is cut into parts of whole groups, one a thread, in order. Part 0 stays with the caller, who begins first and often
// has the data near: where parts differ, his is among the larger ones. A helper has a mailbox of its own, so a call that
// needs two threads disturbs no third one. Between calls helpers spin, then yield, then park, as their policy says: the
// pool of an idle rank uses no CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "range.h"
#include "waiting.h"

namespace shardloom {

// What a call consists of.
struct Work {
  std::int64_t count;  // items
  std::int64_t grain;  // items that stay together: a part begins at a multiple of it
  double item_ns;      // what an item takes one thread, roughly
};

class ThreadPool {
 public:
  // Does the items of the range; `workspace` is the calling thread's own.
  using Task = void (*)(const void* context, Range range, void* workspace);

  // A pool of `threads` threads, the caller included. Each helper has `workspace_bytes` of its own, aligned to 64 and
  // first touched by it. Null when the system refuses a thread or the memory; then nothing of the pool is left.
  static std::unique_ptr<ThreadPool> start(int threads, std::size_t workspace_bytes, WaitingPolicy policy);

  // Ends the helpers and waits until they are gone.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // How many threads are worth their while.
  int parts_of(const Work& work) const;

  // Runs the parts of `work`, at most threads() of them, and returns when all are done. By one thread at a time, and not
  // from within a task. `workspace` is the caller's.
  void run(const Work& work, int parts, Task task, const void* context, void* workspace);

  // Part `part` of `parts`.
  static Range part_of(const Work& work, int part, int parts);

 private:
  struct Helper;

  explicit ThreadPool(WaitingPolicy policy);
  bool add_helper(std::size_t workspace_bytes);

  WaitingPolicy policy_;
  std::vector<std::unique_ptr<Helper>> helpers_;
};

}  // namespace shardloom
