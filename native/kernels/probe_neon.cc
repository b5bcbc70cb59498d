#include "probe_neon.h"

namespace shardloom::neon {
namespace {

// Products of sixteen pairs of codes, summed in 16 bits two by two, and then in 32.
double dot_int8(std::int64_t rounds, std::int32_t* sink) {
  return probe_dot_rounds(rounds, sink, 16, [](int32x4_t sum, int8x16_t x, int8x16_t codes) {
    const int16x8_t products = vmull_s8(vget_low_s8(x), vget_low_s8(codes));
    return vpadalq_s16(sum, vmlal_high_s8(products, x, codes));
  });
}

}  // namespace

constexpr ProbeTable kProbe = {"neon", probe_read_neon, probe_multiply_add_neon, dot_int8, nullptr};

}  // namespace shardloom::neon
