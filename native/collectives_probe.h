// What it costs two cores to hand cache lines to each other: the floor under every collective, for benches and for
// whoever predicts. It is the exchange of a one-shot all-reduce and nothing else of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardloom {

/** Bytes of 64-byte aligned shared memory that an exchange of so many lines of 64 bytes takes, zeroed before the first. */
std::size_t exchange_bytes(std::size_t lines);

/**
 * Nanoseconds that a round takes in which either side (0 or 1, each on a thread of its own) writes its lines, raises a
 * flag, waits for the other one's, and reads the other one's lines. With 0 lines that is the time a line takes one way.
 * Both sides must ask for the same. Negative when the other one stays away for a second.
 */
double exchange_lines(void* memory, std::uint32_t side, std::size_t lines, std::uint32_t rounds);

}  // namespace shardloom
