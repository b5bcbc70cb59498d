// Layout of a region of collectives, in 4-byte words. src/collectives/region.ts is its other half and says what each
// word is for; change both together, and the version with them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardloom::collectives_layout {

inline constexpr std::uint32_t kLayoutVersion = 0x53480003;
inline constexpr std::uint32_t kMaxWorldSize = 64;
inline constexpr std::size_t kLineWords = 32;

// Header line.
inline constexpr std::size_t kVersion = 0;
inline constexpr std::size_t kWorldSize = 1;
inline constexpr std::size_t kSlotBytes = 2;
inline constexpr std::size_t kOneShotBytes = 3;
inline constexpr std::size_t kPoison = 4;
inline constexpr std::size_t kPayload = 5;

// Gate line.
inline constexpr std::size_t kGate = kLineWords;
inline constexpr std::size_t kParked = kLineWords + 1;

// Lines of the ranks; offsets in a line.
inline constexpr std::size_t kFirstRankLine = 2 * kLineWords;
inline constexpr std::size_t kArrived = 0;
inline constexpr std::size_t kRequest = 1;
inline constexpr std::size_t kRequestWords = 5;
inline constexpr std::size_t kTimeoutMs = 16;
inline constexpr std::size_t kSpinMicros = 17;
inline constexpr std::size_t kYieldMicros = 18;
inline constexpr std::size_t kSpinBudget = 19;

// Slots, two a rank, each followed by this padding.
inline constexpr std::size_t kSlotPaddingWords = 96;

/** Bytes of a region of that many ranks. */
inline constexpr std::size_t region_bytes(std::size_t world_size, std::size_t slot_bytes) {
  return (kFirstRankLine + world_size * (kLineWords + 2 * kSlotPaddingWords)) * sizeof(std::uint32_t) +
         2 * world_size * slot_bytes;
}

}  // namespace shardloom::collectives_layout
