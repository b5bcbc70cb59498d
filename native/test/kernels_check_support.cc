#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "../kernels/numbers.h"
#include "kernels_check.h"
#include "kernels_check_report.h"

namespace shardloom::check {
namespace {

constexpr float kUntouched = -1.2345e30f;

std::size_t rounded_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

constexpr float kSpecial[] = {__builtin_nanf(""), __builtin_inff(), -__builtin_inff(), 0.0f,      -0.0f,   0x1p-149f,
                              -0x1p-149f,         0x1p-126f,        -0x1.8p-127f,      0x1p-130f, 0x1p40f, -0x1p40f};

template <class T>
void fill_elements(Random& random, const Array<T>& out, Numbers numbers) {
  const float scale = numbers != Numbers::tiny ? 1.0f : std::is_same_v<T, f16> ? 0x1p-16f : 0x1p-128f;
  for (std::int64_t i = 0; i < out.size(); i++) from_float(random.unit() * scale, out.data() + i);
  if (numbers != Numbers::special) return;
  for (std::int64_t left = random.between(1, 6); left > 0 && out.size() > 0; left--) {
    const std::int64_t count = sizeof(kSpecial) / sizeof(float);
    const float value = kSpecial[random.below(count)];
    from_float(value, out.data() + random.below(out.size()));
  }
}

[[noreturn]] void fail_at(const char* what, std::int64_t row, std::int64_t column, float received, float expected,
                          double allowed) {
  std::fprintf(stderr,
               "%s differs\n  %s\n  row %lld, column %lld: received %.9g (%08x), expected %.9g (%08x), allowed %.3g\n",
               what, report::current_case(), static_cast<long long>(row), static_cast<long long>(column),
               static_cast<double>(received), bits_of_float(received), static_cast<double>(expected),
               bits_of_float(expected), allowed > 0 ? allowed : 0.0);
  std::exit(1);
}

}  // namespace

bool same_number(float a, float b) {
  return bits_of_float(a) == bits_of_float(b) || (std::isnan(a) && std::isnan(b));
}

GuardedMemory::GuardedMemory(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  mapped_ = rounded_up(bytes, page) + page;
  void* pages = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<std::byte*>(pages);
  if (mprotect(pages_ + mapped_ - page, page, PROT_NONE) != 0) throw std::bad_alloc();
  data_ = pages_ + mapped_ - page - bytes;
}

GuardedMemory::~GuardedMemory() { munmap(pages_, mapped_); }

Numbers any_numbers(Random& random) {
  if (random.chance(6)) return Numbers::special;
  return random.chance(8) ? Numbers::tiny : Numbers::ordinary;
}

const char* name_of(Numbers numbers) {
  if (numbers == Numbers::ordinary) return "ordinary";
  return numbers == Numbers::tiny ? "tiny" : "special";
}

void fill(Random& random, const Array<float>& out, Numbers numbers) { fill_elements(random, out, numbers); }
void fill(Random& random, const Array<bf16>& out, Numbers numbers) { fill_elements(random, out, numbers); }
void fill(Random& random, const Array<f16>& out, Numbers numbers) { fill_elements(random, out, numbers); }

void widen(const Array<float>& values, float factor) {
  for (std::int64_t i = 0; i < values.size(); i++) values[i] *= factor;
}

DType any_float_dtype(Random& random) {
  constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};
  return kFloats[random.below(3)];
}

DType any_cache_dtype(Random& random) { return random.chance(4) ? DType::i8 : any_float_dtype(random); }

Workspace::Workspace() : memory_(kWorkspaceBytes + 64) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
  aligned_ = memory_.data() + (64 - address % 64) % 64;
}

void* Workspace::fresh() {
  std::memset(aligned_, 0xff, kWorkspaceBytes);
  return aligned_;
}

Output::Output(std::int64_t rows, std::int64_t columns, std::int64_t stride)
    : rows_(rows), columns_(columns), stride_(stride), memory_(rows == 0 ? 0 : (rows - 1) * stride + columns) {
  for (std::int64_t i = 0; i < memory_.size(); i++) memory_[i] = kUntouched;
}

bool Output::gaps_untouched() const {
  for (std::int64_t m = 0; m + 1 < rows_; m++) {
    for (std::int64_t i = columns_; i < stride_; i++) {
      if (bits_of_float(row(m)[i]) != bits_of_float(kUntouched)) return false;
    }
  }
  return true;
}

void Check::set_case(const std::string& text) {
  report::set_case(std::string(variant.isa) + ", seed " + std::to_string(seed_) + ": " + text);
}

void Check::expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n  %s\n", what, report::current_case());
  std::exit(1);
}

void Check::expect_close(const Output& received, const Output& expected, const Bound& bound, const char* what) {
  for (std::int64_t m = 0; m < expected.rows(); m++) {
    for (std::int64_t n = 0; n < expected.columns(); n++) {
      const float got = received.row(m)[n];
      const float wanted = expected.row(m)[n];
      expect(bits_of_float(got) != bits_of_float(kUntouched), "an element was never written");
      if (same_number(got, wanted)) continue;
      const double allowed = bound(m, n);
      const double error = std::fabs(static_cast<double>(got) - static_cast<double>(wanted));
      if (!(error <= allowed)) fail_at(what, m, n, got, wanted, allowed);
    }
  }
  expect(received.gaps_untouched(), "written beyond the columns of a row");
}

void Check::expect_same(const Output& received, const Output& expected, const char* what) {
  expect_close(received, expected, [](std::int64_t, std::int64_t) { return -1.0; }, what);
}

void Check::expect_same_bytes(const void* received, const void* expected, std::size_t bytes, const char* what) {
  if (bytes > 0) expect(std::memcmp(received, expected, bytes) == 0, what);
}

void Check::digest_word(std::uint32_t word) { digest_ = (digest_ ^ word) * 0x100000001b3u; }

void Check::digest(const Output& output) {
  for (std::int64_t m = 0; m < output.rows(); m++) {
    for (std::int64_t n = 0; n < output.columns(); n++) {
      const float value = output.row(m)[n];
      digest_word(std::isnan(value) ? 0x7fc00000u : bits_of_float(value));
    }
  }
}

void Check::digest(const void* bytes, std::size_t count) {
  for (std::size_t i = 0; i < count; i++) digest_word(static_cast<const unsigned char*>(bytes)[i]);
}

}  // namespace shardloom::check
