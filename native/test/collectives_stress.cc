// Threads meet in thousands of collectives of changing kind and size, and check every element. Built with the thread
// sanitizer by scripts/sanitize.mjs: under Node.js, which is not instrumented, that sanitizer sees races where there
// are none. Prints what went wrong and exits with 1.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "../collectives.h"
#include "../collectives_layout.h"
#include "../collectives_probe.h"
#include "../kernels/variants.h"

namespace {

using namespace shardloom;
using namespace shardloom::collectives_layout;

struct Setup {
  std::uint32_t world_size;
  std::uint32_t slot_bytes;
  std::uint32_t one_shot_bytes;
  std::uint32_t spin_micros;
  std::uint32_t yield_micros;
  CollectivePayload payload;
};

constexpr int kRounds = 300;
constexpr std::size_t kMostElements = 200;
constexpr std::size_t kGatherRows = 5;
// What collectives use of the kernels.
constexpr KernelTable kKernels = {
    .isa = "portable",
    .sum_ranks = portable::sum_ranks,
    .narrow_bf16 = portable::narrow_bf16,
};

constexpr std::uint32_t kSite = 4711;
constexpr std::uint32_t kDeadlineMs = 60'000;

std::atomic<int> failures{0};

void expect(bool condition, const char* what, const Setup& setup, std::uint32_t rank, int round) {
  if (condition) return;
  if (failures++ < 10) {
    std::fprintf(stderr, "%s: rank %u of %u, round %d, slots of %u bytes, one-shot to %u, spin %u us, yield %u us\n",
                 what, rank, setup.world_size, round, setup.slot_bytes, setup.one_shot_bytes, setup.spin_micros,
                 setup.yield_micros);
  }
}

void format(std::uint32_t* words, const Setup& setup) {
  words[kVersion] = kLayoutVersion;
  words[kWorldSize] = setup.world_size;
  words[kSlotBytes] = setup.slot_bytes;
  words[kOneShotBytes] = setup.one_shot_bytes;
  words[kPayload] = static_cast<std::uint32_t>(setup.payload);
  for (std::uint32_t rank = 0; rank < setup.world_size; rank++) {
    std::uint32_t* line = words + kFirstRankLine + rank * kLineWords;
    line[kArrived] = UINT32_MAX - 100;  // the count of phases wraps around on the way
    line[kTimeoutMs] = kDeadlineMs;
    line[kSpinMicros] = setup.spin_micros;
    line[kSpinBudget] = setup.spin_micros;
    line[kYieldMicros] = setup.yield_micros;
  }
}

class Rank {
 public:
  Rank(std::uint32_t* words, const Setup& setup, std::uint32_t rank) : setup_(setup), rank_(rank) {
    const std::size_t bytes = region_bytes(setup.world_size, setup.slot_bytes);
    check(CollectiveRank::open(words, bytes, rank, kSite, kKernels, collective_), "open");
    check(CollectiveRank::open(words, bytes, rank, kSite + (rank == 0), kKernels, deviant_), "open for another site");
  }

  void run() {
    for (round_ = 0; round_ < kRounds; round_++) {
      reduce();
      if (round_ % 3 == 0) gather();
      if (round_ % 5 == 0) broadcast();
      if (round_ % 7 == 0) check(collective_.barrier() == CollectiveStatus::kDone, "barrier");
    }
    // One rank asks for something else, or for another module: all must notice, and stay that way.
    const bool by_kind = setup_.world_size % 2 == 0;
    const CollectiveStatus status = by_kind && rank_ == 0 ? collective_.barrier()
                                    : by_kind             ? collective_.all_reduce(values_.data(), 3)
                                                          : deviant_.all_reduce(values_.data(), 3);
    check(status == CollectiveStatus::kMismatch, "mismatch");
    check(collective_.barrier() == CollectiveStatus::kMismatch, "after the mismatch");
  }

 private:
  void check(bool condition, const char* what) const { expect(condition, what, setup_, rank_, round_); }

  // Times a rank, these are exact in bf16 as well.
  float value(std::size_t element) const { return static_cast<float>(1 + ((round_ + element) & 31)); }

  void reduce() {
    const std::size_t count = 1 + static_cast<std::size_t>(round_) * 37 % kMostElements;
    const auto weight = static_cast<float>(rank_ + 1);
    for (std::size_t i = 0; i < count; i++) values_[i] = weight * value(i);
    check(collective_.all_reduce(values_.data(), count) == CollectiveStatus::kDone, "all-reduce");
    const auto total = static_cast<float>(setup_.world_size * (setup_.world_size + 1) / 2);
    bool right = true;
    for (std::size_t i = 0; i < count; i++) right = right && values_[i] == total * value(i);
    check(right, "sums");
  }

  static std::size_t width(std::uint32_t rank) { return rank % 3; }

  void gather() {
    std::vector<std::uint32_t> data(kGatherRows * 4, rank_ * 1000 + static_cast<std::uint32_t>(round_));
    std::vector<std::uint32_t> out(kGatherRows * 16);
    check(collective_.all_gather({data.data(), 4}, {out.data(), 16}, kGatherRows, width(rank_), CollectiveType::kI32,
                                 77) == CollectiveStatus::kDone,
          "all-gather");
    bool right = true;
    for (std::size_t row = 0; row < kGatherRows; row++) {
      std::size_t column = 0;
      for (std::uint32_t r = 0; r < setup_.world_size; r++) {
        for (std::size_t j = 0; j < width(r); j++, column++) {
          right = right && out[row * 16 + column] == r * 1000 + static_cast<std::uint32_t>(round_);
        }
      }
    }
    check(right, "gathered rows");
  }

  void broadcast() {
    const auto round = static_cast<std::uint32_t>(round_);
    const std::uint32_t root = round % setup_.world_size;
    std::vector<std::uint32_t> data(400, rank_ == root ? round : UINT32_MAX);
    check(collective_.broadcast(data.data(), data.size(), CollectiveType::kF32, root) == CollectiveStatus::kDone,
          "broadcast");
    bool right = true;
    for (const std::uint32_t element : data) right = right && element == round;
    check(right, "broadcast elements");
  }

  const Setup& setup_;
  std::uint32_t rank_;
  int round_ = 0;
  CollectiveRank collective_;
  CollectiveRank deviant_;
  std::vector<float> values_ = std::vector<float>(kMostElements);
};

void run(const Setup& setup) {
  const std::size_t bytes = region_bytes(setup.world_size, setup.slot_bytes);
  const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(128, (bytes + 127) / 128 * 128),
                                                           &std::free);
  auto* words = static_cast<std::uint32_t*>(memory.get());
  std::fill_n(words, bytes / sizeof(std::uint32_t), 0U);
  format(words, setup);
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < setup.world_size; rank++) {
    threads.emplace_back([&setup, words, rank] { Rank(words, setup, rank).run(); });
  }
  for (std::thread& thread : threads) thread.join();
}

void exchange() {
  for (const std::size_t lines : {0U, 3U, 100U}) {
    std::vector<std::uint32_t> memory(exchange_bytes(lines) / sizeof(std::uint32_t));
    std::vector<std::thread> threads;
    for (std::uint32_t side = 0; side < 2; side++) {
      threads.emplace_back([&memory, side, lines] {
        // How long it takes is no matter, nor is it who came too late on a busy machine.
        for (int call = 0; call < 3; call++) exchange_lines(memory.data(), side, lines, 100);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

}  // namespace

int main() {
  exchange();
  for (const std::uint32_t world_size : {2U, 3U, 4U}) {
    for (const std::uint32_t slot_bytes : {128U, 4096U}) {
      for (const std::uint32_t one_shot_bytes : {0U, 64U, 4096U}) {
        for (const CollectivePayload payload : {CollectivePayload::kF32, CollectivePayload::kBf16}) {
          run({world_size, slot_bytes, one_shot_bytes, 0, 0, payload});
          run({world_size, slot_bytes, one_shot_bytes, 0, 100, payload});
          run({world_size, slot_bytes, one_shot_bytes, 50, 200, payload});
        }
      }
    }
  }
  return failures == 0 ? 0 : 1;
}
