#pragma once

#include <node_api.h>

#include "handles.h"

namespace shardloom {

struct KernelTable;

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
};

}  // namespace shardloom
