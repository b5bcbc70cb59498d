// A hint to the core: it changes how fast a loop runs, never what it computes.
#pragma once

namespace shardloom {
namespace {

/** Requests the cache line of an address, which need not be a valid one. */
inline void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  static_cast<void>(address);
#endif
}

}  // namespace
}  // namespace shardloom
