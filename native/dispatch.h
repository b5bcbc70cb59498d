// Which instruction sets this machine can run.
#pragma once

#include "kernels/kernels.h"

namespace shardloom {

inline constexpr int kMaxIsas = 5;

struct KernelTables {
  const KernelTable* tables[kMaxIsas];  // best first
  int count;
};

// The implementations that this CPU supports and whose registers this OS saves. The last one is always "portable".
KernelTables supported_kernels();

}  // namespace shardloom
