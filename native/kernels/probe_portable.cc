#include "probe.h"

namespace shardloom::portable {
namespace {

constexpr int kLanes = 64;

std::uint64_t read(const std::byte* data, std::size_t bytes) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(data);
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i < bytes / sizeof(std::uint64_t); i += 8) {
    for (int j = 0; j < 8; j++) sums[j] += words[i + static_cast<std::size_t>(j)];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t value : sums) sum += value;
  return sum;
}

double multiply_add(std::int64_t rounds, float* sink) {
  // Each sum starts elsewhere: a compiler that finds equal ones makes one of them.
  float sums[kLanes];
  for (int i = 0; i < kLanes; i++) sums[i] = static_cast<float>(i);
  for (std::int64_t round = 0; round < rounds; round++) {
    for (float& sum : sums) sum = sum * 0.5f + 1.0f;
  }
  for (const float sum : sums) *sink += sum;
  return 2.0 * kLanes * static_cast<double>(rounds);
}

double dot_int8(std::int64_t rounds, std::int32_t* sink) {
  std::int8_t left[kLanes];
  std::int8_t right[kLanes];
  for (int i = 0; i < kLanes; i++) {
    left[i] = static_cast<std::int8_t>(i);
    right[i] = static_cast<std::int8_t>(3 * i);
  }
  for (std::int64_t round = 0; round < rounds; round++) {
    std::int32_t sum = 0;
    for (int i = 0; i < kLanes; i++) sum += left[i] * right[i];
    // Another number each round, so that no round can be left out.
    left[0] = static_cast<std::int8_t>(sum);
    *sink ^= sum;
  }
  return 2.0 * kLanes * static_cast<double>(rounds);
}

}  // namespace

constexpr ProbeTable kProbe = {"portable", read, multiply_add, dot_int8, nullptr};

}  // namespace shardloom::portable
