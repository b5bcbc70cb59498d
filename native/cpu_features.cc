#include "cpu_features.h"

#include <cstring>
#include <iterator>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace shardloom {
namespace {

#if defined(__x86_64__)

enum Register { kEax, kEbx, kEcx, kEdx };

// Register state that the OS must save (XCR0) before an extension may be used.
constexpr unsigned kNoState = 0;
constexpr unsigned kAvxState = 0x06;
constexpr unsigned kAvx512State = 0xe6;
constexpr unsigned kAmxState = 0x60000;

struct Feature {
  const char* name;
  unsigned leaf;
  unsigned subleaf;
  Register where;
  int bit;
  unsigned state;
};

constexpr Feature kFeatures[] = {
    {"sse4_2", 1, 0, kEcx, 20, kNoState},
    {"avx", 1, 0, kEcx, 28, kAvxState},
    {"f16c", 1, 0, kEcx, 29, kAvxState},
    {"fma", 1, 0, kEcx, 12, kAvxState},
    {"avx2", 7, 0, kEbx, 5, kAvxState},
    {"avx_vnni", 7, 1, kEax, 4, kAvxState},
    {"avx512f", 7, 0, kEbx, 16, kAvx512State},
    {"avx512dq", 7, 0, kEbx, 17, kAvx512State},
    {"avx512bw", 7, 0, kEbx, 30, kAvx512State},
    {"avx512vl", 7, 0, kEbx, 31, kAvx512State},
    {"avx512vbmi", 7, 0, kEcx, 1, kAvx512State},
    {"avx512_vbmi2", 7, 0, kEcx, 6, kAvx512State},
    {"avx512_vnni", 7, 0, kEcx, 11, kAvx512State},
    {"avx512_bf16", 7, 1, kEax, 5, kAvx512State},
    {"avx512_fp16", 7, 0, kEdx, 23, kAvx512State},
    {"amx_tile", 7, 0, kEdx, 24, kAmxState},
    {"amx_int8", 7, 0, kEdx, 25, kAmxState},
    {"amx_bf16", 7, 0, kEdx, 22, kAmxState},
};

constexpr unsigned kOsXsave = 1u << 27;

unsigned saved_state() {
  unsigned registers[4] = {};
  if (__get_cpuid(1, &registers[kEax], &registers[kEbx], &registers[kEcx], &registers[kEdx]) == 0) return 0;
  if ((registers[kEcx] & kOsXsave) == 0) return 0;
  unsigned low = 0;
  unsigned high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool offered(const Feature& feature, unsigned state) {
  if ((state & feature.state) != feature.state) return false;
  unsigned registers[4] = {};
  // Subleaf 0 says how many there are; __get_cpuid_count knows the highest leaf.
  if (feature.subleaf > 0) {
    if (__get_cpuid_count(feature.leaf, 0, &registers[kEax], &registers[kEbx], &registers[kEcx], &registers[kEdx]) == 0)
      return false;
    if (registers[kEax] < feature.subleaf) return false;
  }
  if (__get_cpuid_count(feature.leaf, feature.subleaf, &registers[kEax], &registers[kEbx], &registers[kEcx],
                        &registers[kEdx]) == 0) {
    return false;
  }
  return (registers[feature.where] >> feature.bit & 1u) != 0;
}

#elif defined(__aarch64__) && defined(__linux__)

struct Feature {
  const char* name;
  unsigned long auxiliary;  // of getauxval
  int bit;
};

constexpr Feature kFeatures[] = {
    {"asimd", AT_HWCAP, 1},  {"asimdhp", AT_HWCAP, 10}, {"asimddp", AT_HWCAP, 20}, {"sve", AT_HWCAP, 22},
    {"sve2", AT_HWCAP2, 1}, {"i8mm", AT_HWCAP2, 13},   {"bf16", AT_HWCAP2, 14},
};

#elif defined(__aarch64__) && defined(__APPLE__)

struct Feature {
  const char* name;
  const char* setting;  // of sysctl
};

constexpr Feature kFeatures[] = {
    {"asimdhp", "hw.optional.arm.FEAT_FP16"},
    {"asimddp", "hw.optional.arm.FEAT_DotProd"},
    {"i8mm", "hw.optional.arm.FEAT_I8MM"},
    {"bf16", "hw.optional.arm.FEAT_BF16"},
};

bool offered(const Feature& feature) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(feature.setting, &value, &bytes, nullptr, 0) == 0 && value == 1;
}

#endif

}  // namespace

bool CpuFeatures::has(const char* name) const {
  for (int i = 0; i < count; i++) {
    if (std::strcmp(names[i], name) == 0) return true;
  }
  return false;
}

CpuFeatures cpu_features() {
  CpuFeatures found = {};
#if defined(__x86_64__)
  static_assert(std::size(kFeatures) <= kMaxCpuFeatures);
  const unsigned state = saved_state();
  for (const Feature& feature : kFeatures) {
    if (offered(feature, state)) found.names[found.count++] = feature.name;
  }
#elif defined(__aarch64__) && defined(__linux__)
  static_assert(std::size(kFeatures) <= kMaxCpuFeatures);
  for (const Feature& feature : kFeatures) {
    if ((getauxval(feature.auxiliary) >> feature.bit & 1u) != 0) found.names[found.count++] = feature.name;
  }
#elif defined(__aarch64__)
  found.names[found.count++] = "asimd";
#if defined(__APPLE__)
  static_assert(std::size(kFeatures) < kMaxCpuFeatures);
  for (const Feature& feature : kFeatures) {
    if (offered(feature)) found.names[found.count++] = feature.name;
  }
#endif
#endif
  return found;
}

}  // namespace shardloom
