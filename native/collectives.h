// Collectives between the threads of one process, over one region of shared memory.
//
// src/collectives/region.ts creates the region and defines its layout; the constants below repeat it and the binding
// refuses a region of another version. The TypeScript twin is src/collectives/atomics-engine.ts: same protocol, same
// bits. Both say `phase` for one round of "write, arrive, wait for all, read".
//
// Why one wait per phase is enough. Payload and request words of phase p live in half p & 1 of what a rank owns. A rank
// writes them before it arrives at p (release), and every rank reads them only between the end of its wait for p
// (acquire) and its own arrival at p + 1. The next write to that half belongs to phase p + 2, and a rank begins p + 2
// only after its wait for p + 1, that is after every rank arrived at p + 1 and so finished reading p. Two halves are
// therefore needed and enough, and a rank is never more than one phase ahead of another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collectives_payload.h"
#include "kernels/kernels.h"

namespace shardloom {

/**
 * Outcome of a collective; also why a region is poisoned, but for kGivenUp: it was poisoned before. Numbers are shared with
 * region.ts.
 */
enum class CollectiveStatus : std::uint32_t { kDone = 0, kTimedOut = 1, kAborted = 2, kMismatch = 3, kGivenUp = 4 };

/** What all-reduces carry from rank to rank; the header of the region says which. Numbers are shared with region.ts. */
enum class CollectivePayload : std::uint32_t { kF32 = 0, kBf16 = 1 };

/** Element types of all-gather and broadcast; both are 4 bytes wide and are copied as bits. */
enum class CollectiveType : std::uint32_t { kF32 = 0, kI32 = 1 };

/**
 * One rank's end of a region. A view made for one call: it owns nothing. At most one thread may act for a rank at a
 * time. Every method blocks until all ranks called the same method with the same sizes, or returns why that will not
 * happen; any status but kDone is final for the region.
 */
class CollectiveRank {
 public:
  /**
   * False when the bytes hold no region of this layout version, or have no such rank. `site` digests the name of the
   * module that calls; ranks that call for different ones do not belong together, even if they want the same. `kernels`
   * sum.
   */
  static bool open(void* base, std::size_t size_bytes, std::uint32_t rank, std::uint32_t site,
                   const KernelTable& kernels, CollectiveRank& out);

  /**
   * Sums `count` f32 over all ranks, in place: ((r0 + r1) + r2) + ..., each sum rounded to f32. A NaN becomes the quiet
   * NaN 0x7fc00000, so that all ranks and both engines agree on every bit. In a region whose payload is bf16, what each
   * rank brings is rounded to bf16 first. With one rank, data stays as it is.
   */
  CollectiveStatus all_reduce(float* data, std::size_t count);

  /**
   * Row m of `out` becomes row m of every rank's data, side by side. This rank contributes `width` columns; `checksum`
   * digests the widths of all ranks, whose sum is at most the columns of `out`, and must be the same everywhere.
   * `data` and `out` must not overlap.
   */
  CollectiveStatus all_gather(ConstMatrix data, Matrix out, std::size_t rows, std::size_t width, CollectiveType type,
                              std::uint32_t checksum);

  /** `count` elements of the root replace those of every rank. */
  CollectiveStatus broadcast(std::uint32_t* data, std::size_t count, CollectiveType type, std::uint32_t root);

  CollectiveStatus barrier();

  std::uint32_t rank() const { return rank_; }
  std::uint32_t world_size() const { return world_size_; }
  /** How long it has waited for other ranks. */
  double waited_micros() const { return waited_micros_; }

 private:
  struct Request;

  std::uint32_t* word(std::size_t index) const { return words_ + index; }
  std::uint32_t* line(std::uint32_t rank) const;
  std::uint32_t* slot(std::uint32_t rank, std::uint32_t phase) const;

  CollectiveStatus enter() const;
  std::uint32_t next_phase() const;
  CollectiveStatus meet(std::uint32_t phase, const Request& request) const;
  void publish(std::uint32_t phase, const Request& request) const;
  bool all_arrived(std::uint32_t phase, std::uint32_t& next) const;
  CollectiveStatus wait_for_all(std::uint32_t phase) const;
  CollectiveStatus wait_slowly(std::uint32_t phase, std::uint32_t next) const;
  CollectiveStatus check_requests(std::uint32_t phase, const Request& request) const;
  CollectiveStatus poison(CollectiveStatus reason) const;
  void wake_parked() const;

  void write(std::uint32_t phase, const float* data, std::size_t begin, std::size_t end) const;
  void sum(float* data, float* copy, std::uint32_t phase, std::size_t begin, std::size_t end) const;
  CollectiveStatus reduce_one_shot(float* data, std::size_t count, const Request& request) const;
  CollectiveStatus reduce_scattered(float* data, std::size_t count, const Request& request) const;

  std::uint32_t* words_ = nullptr;
  std::uint32_t* slots_ = nullptr;
  std::uint32_t rank_ = 0;
  std::uint32_t site_ = 0;
  std::uint32_t world_size_ = 0;
  std::size_t slot_elements_ = 0;
  std::size_t slot_stride_ = 0;
  std::size_t one_shot_elements_ = 0;
  bool bf16_ = false;
  const KernelTable* kernels_ = nullptr;
  mutable double waited_micros_ = 0;
};

/** Wakes all ranks that are parked, for whoever poisoned the region elsewhere. False when the bytes hold no region. */
bool wake_collectives(void* base, std::size_t size_bytes);

}  // namespace shardloom
