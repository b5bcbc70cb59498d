#include "probe_neon.h"

namespace shardloom::neondotprod {
namespace {

double dot_int8(std::int64_t rounds, std::int32_t* sink) {
  return probe_dot_rounds(rounds, sink, 16,
                          [](int32x4_t sum, int8x16_t x, int8x16_t codes) { return vdotq_s32(sum, x, codes); });
}

}  // namespace

constexpr ProbeTable kProbe = {"neondotprod", probe_read_neon, probe_multiply_add_neon, dot_int8, nullptr};

}  // namespace shardloom::neondotprod
