#include "probe_neon.h"

namespace shardloom::neoni8mm {
namespace {

double dot_int8(std::int64_t rounds, std::int32_t* sink) {
  return probe_dot_rounds(rounds, sink, 32,
                          [](int32x4_t sum, int8x16_t x, int8x16_t codes) { return vmmlaq_s32(sum, x, codes); });
}

}  // namespace

constexpr ProbeTable kProbe = {"neoni8mm", probe_read_neon, probe_multiply_add_neon, dot_int8, nullptr};

}  // namespace shardloom::neoni8mm
