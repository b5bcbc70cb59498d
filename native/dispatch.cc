#include "dispatch.h"

#include "cpu_features.h"
#include "kernels/variants.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace shardloom {
namespace {

constexpr KernelTable kPortable = {
    .isa = "portable",
    .linear = portable::linear,
    .linear_bf16 = portable::linear_bf16,
    .bf16_pairs = false,
    .linear_code4 = portable::linear_code4,
    .linear_int8 = portable::linear_int8,
    .quantize_int16 = portable::quantize_int16,
    .quantize_int8 = portable::quantize_int8,
    .arranged_code4_int16 = portable::arranged_code4_int16,
    .arranged_code4_int8 = portable::arranged_code4_int8,
    .arranged_int8_int16 = portable::arranged_int8_int16,
    .arranged_int8_int8 = portable::arranged_int8_int8,
    .embedding_arranged_code4 = portable::embedding_arranged_code4,
    .embedding_arranged_int8 = portable::embedding_arranged_int8,
    .rms_norm = portable::rms_norm,
    .add_rms_norm = portable::add_rms_norm,
    .head_norm = portable::head_norm,
    .rope = portable::rope,
    .embedding = portable::embedding,
    .embedding_code4 = portable::embedding_code4,
    .embedding_int8 = portable::embedding_int8,
    .gather_rows = portable::gather_rows,
    .write_kv = portable::write_kv,
    .attention = portable::attention,
    .attention_combine = portable::attention_combine,
    .silu_mul = portable::silu_mul,
    .argmax = portable::argmax,
    .sum_ranks = portable::sum_ranks,
    .narrow_bf16 = portable::narrow_bf16,
};

#if defined(__x86_64__)

constexpr KernelTable kAvx2 = {
    .isa = "avx2",
    .linear = avx2::linear,
    .linear_bf16 = avx2::linear_bf16,
    .bf16_pairs = false,
    .linear_code4 = avx2::linear_code4,
    .linear_int8 = avx2::linear_int8,
    .quantize_int16 = avx2::quantize_int16,
    .quantize_int8 = avx2::quantize_int8,
    .arranged_code4_int16 = avx2::arranged_code4_int16,
    .arranged_code4_int8 = avx2::arranged_code4_int8,
    .arranged_int8_int16 = avx2::arranged_int8_int16,
    .arranged_int8_int8 = avx2::arranged_int8_int8,
    .embedding_arranged_code4 = portable::embedding_arranged_code4,
    .embedding_arranged_int8 = portable::embedding_arranged_int8,
    .rms_norm = avx2::rms_norm,
    .add_rms_norm = avx2::add_rms_norm,
    .head_norm = avx2::head_norm,
    .rope = avx2::rope,
    .embedding = avx2::embedding,
    .embedding_code4 = avx2::embedding_code4,
    .embedding_int8 = avx2::embedding_int8,
    .gather_rows = portable::gather_rows,
    .write_kv = avx2::write_kv,
    .attention = avx2::attention,
    .attention_combine = avx2::attention_combine,
    .silu_mul = avx2::silu_mul,
    .argmax = avx2::argmax,
    .sum_ranks = avx2::sum_ranks,
    .narrow_bf16 = avx2::narrow_bf16,
};

constexpr KernelTable kAvx512 = {
    .isa = "avx512",
    .linear = avx512::linear,
    .linear_bf16 = avx512::linear_bf16,
    .bf16_pairs = false,
    .linear_code4 = avx512::linear_code4,
    .linear_int8 = avx512::linear_int8,
    .quantize_int16 = avx512::quantize_int16,
    .quantize_int8 = avx512::quantize_int8,
    .arranged_code4_int16 = avx512::arranged_code4_int16,
    .arranged_code4_int8 = avx512::arranged_code4_int8,
    .arranged_int8_int16 = avx512::arranged_int8_int16,
    .arranged_int8_int8 = avx512::arranged_int8_int8,
    .embedding_arranged_code4 = portable::embedding_arranged_code4,
    .embedding_arranged_int8 = portable::embedding_arranged_int8,
    .rms_norm = avx512::rms_norm,
    .add_rms_norm = avx512::add_rms_norm,
    .head_norm = avx512::head_norm,
    .rope = avx512::rope,
    .embedding = avx512::embedding,
    .embedding_code4 = avx512::embedding_code4,
    .embedding_int8 = avx512::embedding_int8,
    .gather_rows = portable::gather_rows,
    .write_kv = avx512::write_kv,
    .attention = avx512::attention,
    .attention_combine = avx512::attention_combine,
    .silu_mul = avx512::silu_mul,
    .argmax = avx512::argmax,
    .sum_ranks = avx512::sum_ranks,
    .narrow_bf16 = avx512::narrow_bf16,
};

// The same with the dot products of VNNI.
constexpr KernelTable avx512_with_vnni() {
  KernelTable table = kAvx512;
  table.isa = "avx512vnni";
  table.arranged_code4_int16 = avx512vnni::arranged_code4_int16;
  table.arranged_code4_int8 = avx512vnni::arranged_code4_int8;
  table.arranged_int8_int16 = avx512vnni::arranged_int8_int16;
  table.arranged_int8_int8 = avx512vnni::arranged_int8_int8;
  return table;
}
constexpr KernelTable kAvx512Vnni = avx512_with_vnni();

// The same with the dot products of bf16.
constexpr KernelTable avx512_with_bf16() {
  KernelTable table = kAvx512Vnni;
  table.isa = "avx512bf16";
  table.linear_bf16 = avx512bf16::linear_bf16;
  table.bf16_pairs = true;
  return table;
}
constexpr KernelTable kAvx512Bf16 = avx512_with_bf16();

// Bits of CPUID leaf 1, ECX.
constexpr unsigned kFma = 1u << 12;
constexpr unsigned kOsXsave = 1u << 27;
constexpr unsigned kAvx = 1u << 28;
constexpr unsigned kF16c = 1u << 29;
// Bits of CPUID leaf 7, subleaf 0, EBX.
constexpr unsigned kAvx2Bit = 1u << 5;
constexpr unsigned kAvx512f = 1u << 16;
constexpr unsigned kAvx512dq = 1u << 17;
constexpr unsigned kAvx512bw = 1u << 30;
constexpr unsigned kAvx512vl = 1u << 31;
// Bits of CPUID leaf 7, subleaf 0, ECX.
constexpr unsigned kAvx512VnniBit = 1u << 11;
// Bits of CPUID leaf 7, subleaf 1, EAX.
constexpr unsigned kAvx512Bf16Bit = 1u << 5;
// Register state that the OS saves (XCR0): SSE and AVX; for AVX-512 also masks and both halves of the ZMM registers.
constexpr unsigned kAvxState = 0x06;
constexpr unsigned kAvx512State = 0xe6;

constexpr bool has(unsigned value, unsigned bits) { return (value & bits) == bits; }

// Valid only where the CPU reports OSXSAVE.
unsigned enabled_state() {
  unsigned low = 0;
  unsigned high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

struct CpuSupport {
  bool avx2;
  bool avx512;
  bool avx512_vnni;
  bool avx512_bf16;  // and VNNI
};

CpuSupport detect() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || !has(ecx, kOsXsave | kAvx | kFma | kF16c)) return {};
  const unsigned state = enabled_state();
  if (!has(state, kAvxState)) return {};
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || !has(ebx, kAvx2Bit)) return {};
  const bool avx512 = has(ebx, kAvx512f | kAvx512dq | kAvx512bw | kAvx512vl) && has(state, kAvx512State);
  const bool vnni = avx512 && has(ecx, kAvx512VnniBit);
  const bool bf16 = vnni && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && has(eax, kAvx512Bf16Bit);
  return {true, avx512, vnni, bf16};
}

#elif defined(__aarch64__)

// NEON is part of the base of the architecture.
constexpr KernelTable kNeon = {
    .isa = "neon",
    .linear = neon::linear,
    .linear_bf16 = neon::linear_bf16,
    .bf16_pairs = false,
    .linear_code4 = neon::linear_code4,
    .linear_int8 = neon::linear_int8,
    .quantize_int16 = neon::quantize_int16,
    .quantize_int8 = neon::quantize_int8,
    .arranged_code4_int16 = neon::arranged_code4_int16,
    .arranged_code4_int8 = neon::arranged_code4_int8,
    .arranged_int8_int16 = neon::arranged_int8_int16,
    .arranged_int8_int8 = neon::arranged_int8_int8,
    .embedding_arranged_code4 = portable::embedding_arranged_code4,
    .embedding_arranged_int8 = portable::embedding_arranged_int8,
    .rms_norm = neon::rms_norm,
    .add_rms_norm = neon::add_rms_norm,
    .head_norm = neon::head_norm,
    .rope = neon::rope,
    .embedding = neon::embedding,
    .embedding_code4 = neon::embedding_code4,
    .embedding_int8 = neon::embedding_int8,
    .gather_rows = portable::gather_rows,
    .write_kv = neon::write_kv,
    .attention = neon::attention,
    .attention_combine = neon::attention_combine,
    .silu_mul = neon::silu_mul,
    .argmax = neon::argmax,
    .sum_ranks = neon::sum_ranks,
    .narrow_bf16 = neon::narrow_bf16,
};

// The same with dot products of int8.
constexpr KernelTable neon_with_dotprod() {
  KernelTable table = kNeon;
  table.isa = "neondotprod";
  table.arranged_code4_int8 = neondotprod::arranged_code4_int8;
  table.arranged_int8_int8 = neondotprod::arranged_int8_int8;
  return table;
}
constexpr KernelTable kNeonDotprod = neon_with_dotprod();

// The same with matrix products of int8, but for single rows, which have no use for them.
constexpr KernelTable neon_with_i8mm() {
  KernelTable table = kNeonDotprod;
  table.isa = "neoni8mm";
  table.arranged_code4_int8 = neoni8mm::arranged_code4_int8;
  table.arranged_int8_int8 = neoni8mm::arranged_int8_int8;
  return table;
}
constexpr KernelTable kNeonI8mm = neon_with_i8mm();

#endif

}  // namespace

KernelTables supported_kernels() {
  KernelTables found = {};
#if defined(__x86_64__)
  const CpuSupport cpu = detect();
  if (cpu.avx512_bf16) found.tables[found.count++] = &kAvx512Bf16;
  if (cpu.avx512_vnni) found.tables[found.count++] = &kAvx512Vnni;
  if (cpu.avx512) found.tables[found.count++] = &kAvx512;
  if (cpu.avx2) found.tables[found.count++] = &kAvx2;
#elif defined(__aarch64__)
  const CpuFeatures cpu = cpu_features();
  const bool dotprod = cpu.has("asimddp");
  if (dotprod && cpu.has("i8mm")) found.tables[found.count++] = &kNeonI8mm;
  if (dotprod) found.tables[found.count++] = &kNeonDotprod;
  found.tables[found.count++] = &kNeon;
#endif
  found.tables[found.count++] = &kPortable;
  return found;
}

}  // namespace shardloom
