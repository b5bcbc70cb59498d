#include "linear_bf16_simd.h"
#include "variants.h"
#include "vector_neon.h"

namespace shardloom::neon {
namespace {

// Bit of FPCR: subnormal operands and results are zeros.
constexpr std::uint64_t kFlushToZero = std::uint64_t{1} << 24;

class SubnormalsAreZero {
 public:
  SubnormalsAreZero() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_ | kFlushToZero) : "memory");
  }
  ~SubnormalsAreZero() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

 private:
  std::uint64_t saved_;
};

}  // namespace

void linear_bf16(const Bf16LinearArgs& args, Range outputs) {
  const SubnormalsAreZero mode;
  linear_bf16_widened<Vec>(args, outputs);
}

}  // namespace shardloom::neon
