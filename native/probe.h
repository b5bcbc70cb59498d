// Measures what this machine can do, so that kernels and users can be told what share of it they get. Each takes
// about as many milliseconds as it is told, and the best of several tries counts: what disturbs makes a try slower only.
#pragma once

#include <cstddef>

#include "kernels/probe.h"
#include "thread_pool.h"

namespace shardloom {

// The best loops that this CPU can run.
const ProbeTable& best_probe();

// GB/s that the threads of the pool, or the calling one where it is null, read from `bytes` of fresh memory, on huge pages
// where there are any. 0 when there is no such memory.
double probe_read(ThreadPool* pool, std::size_t bytes, int passes);

// Billions of floating-point or integer operations a second of the same threads.
double probe_multiply_add(ThreadPool* pool, double milliseconds);
double probe_dot_int8(ThreadPool* pool, double milliseconds);
// The same of products of bf16; 0 where the CPU has no instruction for them.
double probe_dot_bf16(ThreadPool* pool, double milliseconds);

// Whether products of bf16 are worth rounding activations for: they are twice as fast as f32 on some CPUs, half as fast on
// others. Measured once a process, in less than two milliseconds.
bool bf16_pays();

// Nanoseconds that a cache line takes between the first two threads of the pool, and half a round trip when they park.
double probe_cache_line(ThreadPool& pool, double milliseconds);
double probe_wake(ThreadPool& pool, double milliseconds);

// Nanoseconds from handing all threads of the pool a part until all are done, when there is nothing to do.
double probe_fork_join(ThreadPool& pool, double milliseconds);

}  // namespace shardloom
