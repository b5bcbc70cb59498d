#pragma once

#include <node_api.h>

#include <memory>

#include "growing_buffer.h"
#include "handles.h"
#include "kernels/kernels.h"
#include "prepared_weights.h"
#include "recording.h"
#include "thread_pool.h"

namespace shardloom {

// What the addon keeps for one napi_env. Every exported function receives it as its callback data. binding.cc makes it
// and calls `napi_status register_...(napi_env, napi_value exports, AddonInstance*)` of each part of the addon.
struct AddonInstance {
  explicit AddonInstance(napi_env env);
  ~AddonInstance();
  AddonInstance(const AddonInstance&) = delete;
  AddonInstance& operator=(const AddonInstance&) = delete;

  HandleTable handles;
  const KernelTable* kernels = nullptr;
  // Scratch memory of the kernels, kWorkspaceBytes long; null when there was no memory for it.
  void* workspace;
  WeightTable weights;
  // Rows of x as whole numbers, for the call in progress.
  QuantizedBuffer quantized;
  // Rows of x in bf16, for the call in progress.
  GrowingBuffer<bf16> rounded;
  // What calls of operations are written down in; null while nothing is recorded.
  std::unique_ptr<Recording> recording;
  RecordingTable recordings;
  // Threads that share the calls of kernels with the thread of this environment; null while it is alone.
  std::unique_ptr<ThreadPool> pool;

  // What a call of attention is planned in, and what threads that share a long context leave for each other.
  GrowingBuffer<AttentionPlan> attention_plan;
  GrowingBuffer<float> attention_partials;

  // Threads that may share a call.
  int threads() const { return pool == nullptr ? 1 : pool->threads(); }

  // Does `work` on as many threads as it is worth: kernel(range, workspace) for disjoint ranges that together are
  // [0, work.count), each with scratch memory of the thread that it runs on. Returns when all is done.
  template <class Kernel>
  void parallel(const Work& work, const Kernel& kernel) {
    const int parts = pool == nullptr ? 1 : pool->parts_of(work);
    if (parts == 1) {
      kernel(Range{0, work.count}, workspace);
      return;
    }
    const auto task = [](const void* context, Range range, void* own) {
      (*static_cast<const Kernel*>(context))(range, own);
    };
    pool->run(work, parts, task, &kernel, workspace);
  }
};

}  // namespace shardloom
