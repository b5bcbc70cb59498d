// The mode in which x86 takes subnormal numbers for zeros, as its dot products of bf16 always do. For files that are
// compiled for any instruction set of x86.
#pragma once

#include <immintrin.h>

namespace shardloom {
namespace {

// Subnormal operands count as zeros of their sign, and so do results, while one lives.
class SubnormalsAreZero {
 public:
  SubnormalsAreZero() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushResults | kZeroOperands); }
  ~SubnormalsAreZero() { _mm_setcsr(saved_); }
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

 private:
  static constexpr unsigned kFlushResults = 0x8000;
  static constexpr unsigned kZeroOperands = 0x0040;

  unsigned saved_;
};

}  // namespace
}  // namespace shardloom
