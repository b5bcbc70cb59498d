// Where the calling thread runs and which memory it takes. Linux only; elsewhere, and where the system refuses, they say so.
#pragma once

#include <cstdint>

namespace shardloom {

// Keeps the thread to `count` CPUs, ids of the system's.
bool keep_to_cpus(const std::int32_t* cpus, int count);

// Has memory that the thread touches first lie on that NUMA node, as long as it has some.
bool prefer_node(int node);

// What the system calls the thread; -1 where it has no such number.
std::int64_t thread_id();

}  // namespace shardloom
