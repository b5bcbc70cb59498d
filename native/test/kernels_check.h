// What the checks of all kernels share: numbers from a seed, memory that ends where an array ends, and comparisons that
// end the program at the first difference. No result depends on the machine, so that two of them can be compared.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "../dtype.h"
#include "../kernels/kernels.h"

namespace shardloom::check {

// Numbers that follow from a seed (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // [0, limit)
  std::int64_t below(std::int64_t limit) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(limit)); }
  // [first, last]
  std::int64_t between(std::int64_t first, std::int64_t last) { return first + below(last - first + 1); }
  // [first, last], each power of two as likely as the next.
  std::int64_t sized(std::int64_t first, std::int64_t last) {
    const std::int64_t most = std::int64_t{1} << below(64 - __builtin_clzll(static_cast<std::uint64_t>(last)) + 1);
    const std::int64_t value = between(first, most > first ? most : first);
    return value < last ? value : last;
  }
  bool chance(int one_in) { return below(one_in) == 0; }
  // A multiple of 2^-24 in [-1, 1).
  float unit() { return static_cast<float>(static_cast<std::int64_t>(next() >> 39) - (1 << 24)) * 0x1p-24f; }

 private:
  std::uint64_t state_;
};

// Zeroed memory whose last byte is followed by a page that nobody may touch. So the alignment of its start follows from
// its size: any multiple of the element.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t bytes);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* pages_;
  std::size_t mapped_;
  std::byte* data_;
};

template <class T>
class Array {
 public:
  explicit Array(std::int64_t count) : count_(count), memory_(static_cast<std::size_t>(count) * sizeof(T)) {}

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  std::int64_t size() const { return count_; }
  T& operator[](std::int64_t i) const { return data()[i]; }

 private:
  std::int64_t count_;
  GuardedMemory memory_;
};

enum class Numbers {
  ordinary,  // multiples of 2^-24 in [-1, 1)
  tiny,      // subnormal f32, or the smallest of a 16-bit format
  special,   // ordinary, with a few NaN, infinities, zeros of both signs, subnormal and large ones among them
};

// Ordinary more often than not.
Numbers any_numbers(Random& random);
const char* name_of(Numbers numbers);

void fill(Random& random, const Array<float>& out, Numbers numbers);
void fill(Random& random, const Array<bf16>& out, Numbers numbers);
void fill(Random& random, const Array<f16>& out, Numbers numbers);
// Numbers `factor` times as large: where the whole range of a function, or of a type, matters.
void widen(const Array<float>& values, float factor);

// Scratch memory for kernels. What it holds before a call must not matter: it is NaN.
class Workspace {
 public:
  Workspace();
  void* fresh();

 private:
  Array<std::byte> memory_;
  std::byte* aligned_;
};

// Floats that a kernel writes: `rows` of `columns`, `stride` apart. What lies between rows must stay as it was.
class Output {
 public:
  Output(std::int64_t rows, std::int64_t columns, std::int64_t stride);

  float* data() const { return memory_.data(); }
  float* row(std::int64_t m) const { return memory_.data() + m * stride_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }
  std::int64_t stride() const { return stride_; }
  bool gaps_untouched() const;

 private:
  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t stride_;
  Array<float> memory_;
};

// NaN equals NaN, whatever its bits.
bool same_number(float a, float b);

// The largest error that element (row, column) may have.
using Bound = std::function<double(std::int64_t row, std::int64_t column)>;

// The check of one kernel of one variant.
class Check {
 public:
  Check(const KernelTable& variant, const KernelTable& portable, std::uint64_t seed, int cases)
      : variant(variant), portable(portable), seed_(seed), cases_(cases) {}

  const KernelTable& variant;
  const KernelTable& portable;
  Workspace workspace;

  // Calls work(random) for each case, with numbers of its own.
  template <class Work>
  void each_case(Work work) {
    for (int i = 0; i < cases_; i++) {
      Random random(seed_ * 0x100000001b3u + static_cast<std::uint64_t>(i));
      run_++;
      work(random);
    }
  }

  // Says what the case is, for reports.
  template <class... Parts>
  void describe(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    set_case(text.str());
  }

  // Each of these ends the program with a report unless what it says holds.
  void expect(bool condition, const char* what);
  void expect_close(const Output& received, const Output& expected, const Bound& bound, const char* what);
  void expect_same(const Output& received, const Output& expected, const char* what);
  void expect_same_bytes(const void* received, const void* expected, std::size_t bytes, const char* what);

  // Adds what a kernel computed to the digest, by which two machines can be compared.
  void digest(const Output& output);
  void digest(const void* bytes, std::size_t count);

  int cases_run() const { return run_; }
  std::uint64_t digest() const { return digest_; }

 private:
  void set_case(const std::string& text);
  void digest_word(std::uint32_t word);

  std::uint64_t seed_;
  int cases_;
  int run_ = 0;
  std::uint64_t digest_ = 0xcbf29ce484222325u;
};

// One kernel: `work` checks it, and `same` tells whether two variants have the same one.
struct KernelCheck {
  const char* kernel;
  void (*work)(Check& check);
  bool (*same)(const KernelTable& variant, const KernelTable& other);
  // Of cases: 1 where one is cheap.
  int divisor;
};

template <auto kKernel>
bool same(const KernelTable& variant, const KernelTable& other) {
  return variant.*kKernel == other.*kKernel;
}

void add_linear_checks(std::vector<KernelCheck>& checks);
void add_arranged_checks(std::vector<KernelCheck>& checks);
void add_row_checks(std::vector<KernelCheck>& checks);
void add_payload_checks(std::vector<KernelCheck>& checks);
void add_attention_checks(std::vector<KernelCheck>& checks);

DType any_float_dtype(Random& random);
DType any_cache_dtype(Random& random);

}  // namespace shardloom::check
