// Where the calling thread runs and which memory it takes. Linux only; false elsewhere, and where the system refuses.
#pragma once

#include <cstdint>

namespace shardloom {

// Keeps the thread to `count` CPUs, ids of the system's.
bool keep_to_cpus(const std::int32_t* cpus, int count);

// Has memory that the thread touches first lie on that NUMA node, as long as it has some.
bool prefer_node(int node);

}  // namespace shardloom
