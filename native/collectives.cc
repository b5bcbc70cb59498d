// Assumptions: the region is 64-byte aligned, payloads are 4-byte aligned, and no payload overlaps the region.
#include "collectives.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "collectives_layout.h"
#include "collectives_payload.h"
#include "waiting.h"

namespace shardloom {
namespace {

using std::size_t;
using std::uint32_t;
using Clock = std::chrono::steady_clock;
using Word = std::atomic_ref<uint32_t>;

using namespace collectives_layout;

// A parked thread looks around at least this often, whatever wakes it or fails to.
constexpr auto kParkSlice = std::chrono::milliseconds(20);
constexpr int kSpinsBetweenLooks = 32;

constexpr uint32_t kReasonMask = 0xff;
constexpr uint32_t kRankShift = 8;

enum Kind : uint32_t { kAllReduce = 1, kAllGather = 2, kBroadcast = 3, kBarrier = 4 };
constexpr uint32_t kTypeShift = 8;

CollectiveStatus status_of(uint32_t poison) { return static_cast<CollectiveStatus>(poison & kReasonMask); }

/** Wakes all that are parked, and all that are about to park on what the gate was before. */
void open_gate(uint32_t* words) {
  Word(words[kGate]).fetch_add(1);
  unpark_all(words + kGate);
}

/** Sets the poison word unless it is set, and wakes everybody. Returns the word that stands. */
uint32_t poison_region(uint32_t* words, CollectiveStatus reason, uint32_t rank) {
  const uint32_t wanted = static_cast<uint32_t>(reason) | (rank + 1) << kRankShift;
  uint32_t standing = 0;
  const bool first = Word(words[kPoison]).compare_exchange_strong(standing, wanted);
  open_gate(words);
  return first ? wanted : standing;
}

/** Size of the region that the header describes, or 0 if it describes none. */
size_t described_bytes(const uint32_t* words, size_t size_bytes) {
  if (size_bytes < kFirstRankLine * sizeof(uint32_t)) return 0;
  if (reinterpret_cast<std::uintptr_t>(words) % alignof(uint32_t) != 0 || words[kVersion] != kLayoutVersion) return 0;
  const size_t ranks = words[kWorldSize];
  const size_t slot_bytes = words[kSlotBytes];
  if (ranks < 1 || ranks > kMaxWorldSize || slot_bytes == 0 || slot_bytes % 128 != 0) return 0;
  return region_bytes(ranks, slot_bytes);
}

}  // namespace

struct CollectiveRank::Request {
  uint32_t kind;
  uint32_t size;
  uint32_t width;
  uint32_t checksum;
  uint32_t site;
};

bool CollectiveRank::open(void* base, size_t size_bytes, uint32_t rank, uint32_t site, const KernelTable& kernels,
                          CollectiveRank& out) {
  auto* words = static_cast<uint32_t*>(base);
  const size_t needed = described_bytes(words, size_bytes);
  if (needed == 0 || needed > size_bytes || rank >= words[kWorldSize]) return false;
  out.words_ = words;
  out.rank_ = rank;
  out.site_ = site;
  out.world_size_ = words[kWorldSize];
  out.slots_ = words + kFirstRankLine + out.world_size_ * kLineWords;
  out.slot_elements_ = words[kSlotBytes] / sizeof(uint32_t);
  out.slot_stride_ = out.slot_elements_ + kSlotPaddingWords;
  out.one_shot_elements_ = words[kOneShotBytes] / sizeof(uint32_t);
  out.bf16_ = words[kPayload] == static_cast<uint32_t>(CollectivePayload::kBf16) && out.world_size_ > 1;
  out.kernels_ = &kernels;
  return true;
}

uint32_t* CollectiveRank::line(uint32_t rank) const { return words_ + kFirstRankLine + rank * kLineWords; }

uint32_t* CollectiveRank::slot(uint32_t rank, uint32_t phase) const {
  return slots_ + (2 * static_cast<size_t>(rank) + (phase & 1)) * slot_stride_;
}

CollectiveStatus CollectiveRank::enter() const {
  const uint32_t poisoned = Word(words_[kPoison]).load(std::memory_order_acquire);
  return poisoned == 0 ? CollectiveStatus::kDone : CollectiveStatus::kGivenUp;
}

/** Phases count arrivals, so the flag that others read is also this rank's only counter. Wraps around. */
uint32_t CollectiveRank::next_phase() const {
  return Word(line(rank_)[kArrived]).load(std::memory_order_relaxed) + 1;
}

CollectiveStatus CollectiveRank::meet(uint32_t phase, const Request& request) const {
  publish(phase, request);
  const CollectiveStatus status = wait_for_all(phase);
  return status == CollectiveStatus::kDone ? check_requests(phase, request) : status;
}

void CollectiveRank::publish(uint32_t phase, const Request& request) const {
  uint32_t* own = line(rank_);
  std::memcpy(own + kRequest + (phase & 1) * kRequestWords, &request, sizeof(request));
  // Sequentially consistent: see wake_parked.
  Word(own[kArrived]).store(phase);
}

bool CollectiveRank::all_arrived(uint32_t phase, uint32_t& next) const {
  for (; next < world_size_; next++) {
    const uint32_t arrived = Word(line(next)[kArrived]).load();
    if (static_cast<std::int32_t>(arrived - phase) < 0) return false;
  }
  return true;
}

CollectiveStatus CollectiveRank::wait_for_all(uint32_t phase) const {
  uint32_t next = 0;
  if (!all_arrived(phase, next)) {
    const Clock::time_point start = Clock::now();
    const CollectiveStatus status = wait_slowly(phase, next);
    waited_micros_ += std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    if (status != CollectiveStatus::kDone) return status;
  }
  wake_parked();
  return CollectiveStatus::kDone;
}

/**
 * Spins, then yields, then parks, each for as long as this rank's policy says, until the deadline. Spinning that was in
 * vain is halved next time, and doubled again when it pays: two ranks may share a core whatever the policy was told,
 * and then each keeps the other from arriving for as long as it spins.
 */
CollectiveStatus CollectiveRank::wait_slowly(uint32_t phase, uint32_t next) const {
  uint32_t* own = line(rank_);
  const uint32_t budget = own[kSpinBudget];
  const Clock::time_point start = Clock::now();
  const auto deadline = start + std::chrono::milliseconds(own[kTimeoutMs]);
  const auto spin_end = start + std::chrono::microseconds(budget);
  const auto yield_end = spin_end + std::chrono::microseconds(own[kYieldMicros]);
  Clock::time_point now = start;
  for (;;) {
    uint32_t gate = 0;
    const bool parking = now >= yield_end;
    if (now < spin_end) {
      for (int i = 0; i < kSpinsBetweenLooks; i++) {
        relax();
        if (!all_arrived(phase, next)) continue;
        own[kSpinBudget] = std::min(own[kSpinMicros], 2 * budget);
        return CollectiveStatus::kDone;
      }
      own[kSpinBudget] = std::max<uint32_t>(1, budget / 2);
    } else if (!parking) {
      std::this_thread::yield();
    } else {
      gate = Word(words_[kGate]).load();
      Word(words_[kParked]).store(1);
    }
    // Poison before flags: a rank that finds a mismatch has seen all arrive, so whoever sees its poison sees that too
    // and goes on to find the mismatch itself.
    const uint32_t poisoned = Word(words_[kPoison]).load();
    if (all_arrived(phase, next)) return CollectiveStatus::kDone;
    if (poisoned != 0) return status_of(poisoned);
    now = Clock::now();
    if (now >= deadline) return poison(CollectiveStatus::kTimedOut);
    if (parking) {
      park(words_ + kGate, gate, std::min<std::chrono::nanoseconds>(deadline - now, kParkSlice));
      now = Clock::now();
    }
  }
}

/**
 * Called by every rank that found all arrived, hence also by the last one to arrive. No wake-up is lost: a rank that
 * parks announces itself, then looks at the flags; the last rank sets its flag, then looks for announcements. All four
 * accesses are sequentially consistent, so at least one of the two sees the other. Taking an announcement back always
 * moves the gate, so that whoever announced itself in between does not sleep on the old value.
 */
void CollectiveRank::wake_parked() const {
  Word parked(words_[kParked]);
  if (parked.load() == 0 || parked.exchange(0) == 0) return;
  open_gate(words_);
}

CollectiveStatus CollectiveRank::check_requests(uint32_t phase, const Request& request) const {
  for (uint32_t r = 0; r < world_size_; r++) {
    Request theirs;
    std::memcpy(&theirs, line(r) + kRequest + (phase & 1) * kRequestWords, sizeof(theirs));
    // The width is a rank's own affair; the checksum covers all of them.
    if (theirs.kind != request.kind || theirs.size != request.size || theirs.checksum != request.checksum ||
        theirs.site != request.site) {
      return poison(CollectiveStatus::kMismatch);
    }
  }
  return CollectiveStatus::kDone;
}

CollectiveStatus CollectiveRank::poison(CollectiveStatus reason) const {
  return status_of(poison_region(words_, reason, rank_));
}

CollectiveStatus CollectiveRank::all_reduce(float* data, size_t count) {
  CollectiveStatus status = enter();
  const Request request{kAllReduce, static_cast<uint32_t>(count), 0, 0, site_};
  size_t done = 0;
  do {
    if (status != CollectiveStatus::kDone) return status;
    const size_t chunk = std::min(count - done, slot_elements_);
    status = chunk <= one_shot_elements_ ? reduce_one_shot(data + done, chunk, request)
                                         : reduce_scattered(data + done, chunk, request);
    done += chunk;
  } while (done < count);
  return status;
}

/** Puts elements [begin, end) into this rank's slot, as they travel. */
void CollectiveRank::write(uint32_t phase, const float* data, size_t begin, size_t end) const {
  uint32_t* mine = slot(rank_, phase);
  if (bf16_) {
    const Range elements{static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)};
    kernels_->narrow_bf16(reinterpret_cast<bf16*>(mine), data, elements);
  } else {
    std::memcpy(mine + begin, data + begin, (end - begin) * sizeof(float));
  }
}

/** Sums what all ranks brought of [begin, end) into data, and into `copy` unless that is null. */
void CollectiveRank::sum(float* data, float* copy, uint32_t phase, size_t begin, size_t end) const {
  const void* sources[kMaxWorldSize];
  for (uint32_t r = 0; r < world_size_; r++) sources[r] = slot(r, phase);
  // This rank's own f32 are still where they came from.
  if (!bf16_) sources[rank_] = data;
  const RankSumArgs args{data, copy, sources, bf16_ ? DType::bf16 : DType::f32, world_size_, rank_};
  kernels_->sum_ranks(args, {static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)});
}

/** Every rank sums all slots: one wait, and each payload crosses to every rank. */
CollectiveStatus CollectiveRank::reduce_one_shot(float* data, size_t count, const Request& request) const {
  const uint32_t phase = next_phase();
  write(phase, data, 0, count);
  const CollectiveStatus status = meet(phase, request);
  if (status == CollectiveStatus::kDone && world_size_ > 1) sum(data, nullptr, phase, 0, count);
  return status;
}

/**
 * Reduce-scatter, then all-gather: two waits, but every element crosses at most twice however many ranks there are. The
 * sums of the first phase are the payload of the second, in f32 and in its own half of the slots, so the rule at the top
 * of collectives.h covers both.
 */
CollectiveStatus CollectiveRank::reduce_scattered(float* data, size_t count, const Request& request) const {
  const uint32_t phase = next_phase();
  const size_t begin = part_begin(count, rank_, world_size_);
  const size_t end = part_begin(count, rank_ + 1, world_size_);
  write(phase, data, 0, begin);
  if (bf16_) write(phase, data, begin, end);
  write(phase, data, end, count);
  CollectiveStatus status = meet(phase, request);
  if (status != CollectiveStatus::kDone || world_size_ == 1) return status;

  sum(data, reinterpret_cast<float*>(slot(rank_, phase + 1)), phase, begin, end);
  status = meet(phase + 1, request);
  if (status != CollectiveStatus::kDone) return status;
  for (uint32_t r = 0; r < world_size_; r++) {
    if (r == rank_) continue;
    const size_t first = part_begin(count, r, world_size_);
    const size_t last = part_begin(count, r + 1, world_size_);
    std::memcpy(data + first, slot(r, phase + 1) + first, (last - first) * sizeof(float));
  }
  return status;
}

CollectiveStatus CollectiveRank::all_gather(ConstMatrix data, Matrix out, size_t rows, size_t width,
                                            CollectiveType type, uint32_t checksum) {
  CollectiveStatus status = enter();
  if (status != CollectiveStatus::kDone) return status;
  const Request request{kAllGather | static_cast<uint32_t>(type) << kTypeShift, static_cast<uint32_t>(rows),
                        static_cast<uint32_t>(width), checksum, site_};
  const auto share = [&](size_t columns, size_t done) {
    const size_t total = rows * columns;
    return total <= done ? 0 : std::min(total - done, slot_elements_);
  };
  // Each rank's columns travel as one run of elements, row after row, a slot at a time; the widest rank decides how
  // many phases that takes, and its width is known to all after the first.
  size_t widest = width;
  for (size_t done = 0; done == 0 || done < rows * widest; done += slot_elements_) {
    const uint32_t phase = next_phase();
    pack_columns(slot(rank_, phase), data, width, done, share(width, done));
    status = meet(phase, request);
    if (status != CollectiveStatus::kDone) return status;
    size_t offset = 0;
    for (uint32_t r = 0; r < world_size_; r++) {
      const size_t columns = line(r)[kRequest + (phase & 1) * kRequestWords + 2];
      // Equal checksums make this impossible, short of a collision; memory safety must not rest on that.
      if (columns > out.columns - offset) return poison(CollectiveStatus::kMismatch);
      unpack_columns(out, offset, slot(r, phase), columns, done, share(columns, done));
      widest = std::max(widest, columns);
      offset += columns;
    }
  }
  return status;
}

CollectiveStatus CollectiveRank::broadcast(uint32_t* data, size_t count, CollectiveType type, uint32_t root) {
  CollectiveStatus status = enter();
  const Request request{kBroadcast | static_cast<uint32_t>(type) << kTypeShift, static_cast<uint32_t>(count), 0, root,
                        site_};
  size_t done = 0;
  do {
    if (status != CollectiveStatus::kDone) return status;
    const uint32_t phase = next_phase();
    const size_t bytes = std::min(count - done, slot_elements_) * sizeof(uint32_t);
    if (rank_ == root) std::memcpy(slot(root, phase), data + done, bytes);
    status = meet(phase, request);
    if (status == CollectiveStatus::kDone && rank_ != root) std::memcpy(data + done, slot(root, phase), bytes);
    done += slot_elements_;
  } while (done < count);
  return status;
}

CollectiveStatus CollectiveRank::barrier() {
  const CollectiveStatus status = enter();
  return status == CollectiveStatus::kDone ? meet(next_phase(), Request{kBarrier, 0, 0, 0, site_}) : status;
}

bool wake_collectives(void* base, size_t size_bytes) {
  auto* words = static_cast<uint32_t*>(base);
  const size_t needed = described_bytes(words, size_bytes);
  if (needed == 0 || needed > size_bytes) return false;
  open_gate(words);
  return true;
}

}  // namespace shardloom
