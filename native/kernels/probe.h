// What a core can do at most: loops that do nothing but read, multiply or sum products. For measuring limits only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardloom {

struct ProbeTable {
  const char* isa;
  // Reads all of the bytes, a multiple of kProbeReadStep aligned to 64, and returns a number that depends on all of them.
  std::uint64_t (*read)(const std::byte* data, std::size_t bytes);
  // Multiplies and adds floats for so many rounds. Returns the operations: two for each product that was added.
  double (*multiply_add)(std::int64_t rounds, float* sink);
  // Sums products of int8 codes in int32 the fastest way the CPU has, as kernels do. Returns the operations, as above.
  double (*dot_int8)(std::int64_t rounds, std::int32_t* sink);
  // The same of products of bf16, in f32; null where the CPU has no instruction for them.
  double (*dot_bf16)(std::int64_t rounds, float* sink);
};

inline constexpr std::size_t kProbeReadStep = 1024;

namespace portable {
extern const ProbeTable kProbe;
}
namespace avx2 {
extern const ProbeTable kProbe;
}
namespace avx512 {
extern const ProbeTable kProbe;
extern const ProbeTable kProbeVnni;
extern const ProbeTable kProbeBf16;
}
namespace neon {
extern const ProbeTable kProbe;
}
namespace neondotprod {
extern const ProbeTable kProbe;
}
namespace neoni8mm {
extern const ProbeTable kProbe;
}

}  // namespace shardloom
