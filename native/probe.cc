#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <utility>

#include "cpu_features.h"
#include "posted_number.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace shardloom {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kPageBytes = 4096;
constexpr int kTries = 5;
constexpr int kBatch = 20;
constexpr int kSpinsBeforeYield = 10'000;
// What a thread of the pool does here is worth all of them.
constexpr double kWorthEveryThread = 1e12;

double ns_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

// body(thread, threads) on every thread of the pool.
template <class Body>
void on_all_threads(ThreadPool* pool, const Body& body) {
  if (pool == nullptr) {
    body(0, 1);
    return;
  }
  struct Context {
    const Body* body;
    int threads;
  };
  const Context context = {&body, pool->threads()};
  const auto task = [](const void* given, Range range, void*) {
    const Context& own = *static_cast<const Context*>(given);
    (*own.body)(static_cast<int>(range.begin), own.threads);
  };
  pool->run({context.threads, 1, kWorthEveryThread}, context.threads, task, &context, nullptr);
}

// Memory that nobody has touched, on huge pages where the system has them.
class FreshMemory {
 public:
  explicit FreshMemory(std::size_t bytes) : bytes_(bytes) {
#if defined(__unix__) || defined(__APPLE__)
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (mapped == MAP_FAILED) return;
    data_ = static_cast<std::byte*>(mapped);
#if defined(MADV_HUGEPAGE)
    madvise(mapped, bytes, MADV_HUGEPAGE);
#endif
#else
    data_ = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kPageBytes}, std::nothrow));
#endif
  }
  ~FreshMemory() {
    if (data_ == nullptr) return;
#if defined(__unix__) || defined(__APPLE__)
    munmap(data_, bytes_);
#else
    ::operator delete(data_, std::align_val_t{kPageBytes});
#endif
  }
  FreshMemory(const FreshMemory&) = delete;
  FreshMemory& operator=(const FreshMemory&) = delete;

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

// Operations a nanosecond of all threads that run `loop`, a function of rounds that returns operations.
template <class Loop>
double operations_per_ns(ThreadPool* pool, double milliseconds, const Loop& loop) {
  std::int64_t rounds = 1000;
  for (;;) {
    const auto start = Clock::now();
    loop(rounds);
    if (ns_since(start) * kTries >= milliseconds * 1e6) break;
    rounds *= 2;
  }
  double best = 0;
  for (int i = 0; i < kTries; i++) {
    std::atomic<double> operations{0};
    const auto start = Clock::now();
    on_all_threads(pool, [&](int, int) {
      const double done = loop(rounds);
      double before = operations.load();
      while (!operations.compare_exchange_weak(before, before + done)) {
      }
    });
    best = std::max(best, operations.load() / ns_since(start));
  }
  return best;
}

// The shortest time of a call of `batch`, which does kBatch of something, called until the time is over, in nanoseconds of
// one of them.
template <class Batch>
double best_of_batches(double milliseconds, const Batch& batch) {
  const auto first = Clock::now();
  double best = std::numeric_limits<double>::infinity();
  do {
    const auto start = Clock::now();
    batch();
    best = std::min(best, ns_since(start) / kBatch);
  } while (ns_since(first) < milliseconds * 1e6);
  return best;
}

// Half a round trip between the first two threads of the pool. `Side` has post(number) and wait(number).
template <class Side>
double one_way_ns(ThreadPool& pool, double milliseconds) {
  constexpr std::uint32_t kEnd = 0xffffffff;
  struct Context {
    Side there;
    Side back;
    double milliseconds;
    double round_trip;

    void ping() {
      std::uint32_t number = 0;
      round_trip = best_of_batches(milliseconds, [&] {
        for (int i = 0; i < kBatch; i++) {
          there.post(number + 1);
          back.wait(number);
          number++;
        }
      });
      there.post(kEnd);
    }
    void pong() {
      for (std::uint32_t last = 0; (last = there.wait(last)) != kEnd;) back.post(last);
    }
  };
  Context context = {{}, {}, milliseconds, 0};
  Context* shared = &context;
  const auto task = [](const void* given, Range range, void*) {
    Context* own = *static_cast<Context* const*>(given);
    if (range.begin == 0) {
      own->ping();
    } else {
      own->pong();
    }
  };
  pool.run({2, 1, kWorthEveryThread}, 2, task, &shared, nullptr);
  return context.round_trip / 2;
}

// Spins: what crosses is a cache line.
class SpinningSide {
 public:
  void post(std::uint32_t number) { line_.store(number, std::memory_order_release); }
  std::uint32_t wait(std::uint32_t old) const {
    for (int spins = 0;; spins++) {
      const std::uint32_t number = line_.load(std::memory_order_acquire);
      if (number != old) return number;
      relax();
      // The other thread may have no core of its own.
      if (spins > kSpinsBeforeYield) std::this_thread::yield();
    }
  }

 private:
  alignas(128) std::atomic<std::uint32_t> line_{0};
};

// Parks at once.
class ParkingSide {
 public:
  void post(std::uint32_t number) {
    number_.post(number);
    PostedNumber::fence();
    number_.wake();
  }
  std::uint32_t wait(std::uint32_t old) { return number_.wait(old, {0, 0}); }

 private:
  alignas(128) PostedNumber number_;
};

}  // namespace

const ProbeTable& best_probe() {
#if defined(__x86_64__)
  const CpuFeatures features = cpu_features();
  if (features.has("avx512f") && features.has("avx512bw") && features.has("avx512dq") && features.has("avx512vl")) {
    if (!features.has("avx512_vnni")) return avx512::kProbe;
    return features.has("avx512_bf16") ? avx512::kProbeBf16 : avx512::kProbeVnni;
  }
  if (features.has("avx2") && features.has("fma")) return avx2::kProbe;
  return portable::kProbe;
#elif defined(__aarch64__)
  const CpuFeatures features = cpu_features();
  if (!features.has("asimddp")) return neon::kProbe;
  return features.has("i8mm") ? neoni8mm::kProbe : neondotprod::kProbe;
#else
  return portable::kProbe;
#endif
}

double probe_read(ThreadPool* pool, std::size_t bytes, int passes) {
  const ProbeTable& probe = best_probe();
  const std::size_t steps = bytes / kProbeReadStep;
  const FreshMemory memory(bytes);
  if (memory.data() == nullptr) return 0;
  const auto share = [&](int thread, int threads) {
    const auto at = [&](int t) {
      return steps * static_cast<std::size_t>(t) / static_cast<std::size_t>(threads) * kProbeReadStep;
    };
    return std::pair(memory.data() + at(thread), at(thread + 1) - at(thread));
  };
  on_all_threads(pool, [&](int thread, int threads) {
    const auto [data, size] = share(thread, threads);
    volatile std::byte* touched = data;
    for (std::size_t i = 0; i < size; i += kProbeReadStep) touched[i] = std::byte{0};
  });
  std::atomic<std::uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < passes; pass++) {
    const auto start = Clock::now();
    on_all_threads(pool, [&](int thread, int threads) {
      const auto [data, size] = share(thread, threads);
      sink += probe.read(data, size);
    });
    best = std::max(best, static_cast<double>(steps * kProbeReadStep) / ns_since(start));
  }
  return best;
}

double probe_multiply_add(ThreadPool* pool, double milliseconds) {
  const ProbeTable& probe = best_probe();
  return operations_per_ns(pool, milliseconds, [&](std::int64_t rounds) {
    float sink = 0;
    const double operations = probe.multiply_add(rounds, &sink);
    volatile float kept = sink;
    static_cast<void>(kept);
    return operations;
  });
}

double probe_dot_int8(ThreadPool* pool, double milliseconds) {
  const ProbeTable& probe = best_probe();
  return operations_per_ns(pool, milliseconds, [&](std::int64_t rounds) {
    std::int32_t sink = 0;
    const double operations = probe.dot_int8(rounds, &sink);
    volatile std::int32_t kept = sink;
    static_cast<void>(kept);
    return operations;
  });
}

double probe_dot_bf16(ThreadPool* pool, double milliseconds) {
  const ProbeTable& probe = best_probe();
  if (probe.dot_bf16 == nullptr) return 0;
  return operations_per_ns(pool, milliseconds, [&](std::int64_t rounds) {
    float sink = 0;
    const double operations = probe.dot_bf16(rounds, &sink);
    volatile float kept = sink;
    static_cast<void>(kept);
    return operations;
  });
}

bool bf16_pays() {
  // Long enough to be told apart, short enough for a start.
  constexpr double kMilliseconds = 0.1;
  constexpr double kWorthRounding = 1.5;
  static const bool pays =
      probe_dot_bf16(nullptr, kMilliseconds) > kWorthRounding * probe_multiply_add(nullptr, kMilliseconds);
  return pays;
}

double probe_cache_line(ThreadPool& pool, double milliseconds) { return one_way_ns<SpinningSide>(pool, milliseconds); }

double probe_wake(ThreadPool& pool, double milliseconds) { return one_way_ns<ParkingSide>(pool, milliseconds); }

double probe_fork_join(ThreadPool& pool, double milliseconds) {
  return best_of_batches(milliseconds, [&] {
    for (int i = 0; i < kBatch; i++) on_all_threads(&pool, [](int, int) {});
  });
}

}  // namespace shardloom
