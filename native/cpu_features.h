// What the CPU and the OS together offer.
#pragma once

namespace shardloom {

inline constexpr int kMaxCpuFeatures = 48;

struct CpuFeatures {
  const char* names[kMaxCpuFeatures];
  int count;

  bool has(const char* name) const;
};

// Extensions of the instruction set that matter to kernels, as /proc/cpuinfo calls them; only those whose registers the
// OS saves.
CpuFeatures cpu_features();

}  // namespace shardloom
