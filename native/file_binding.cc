// Reads of files for src/checkpoint/random-access-file.ts: a slice of a row-major tensor is many runs of bytes at equal
// distances, and a call from JavaScript for each costs more than the bytes. Here one call reads all of them, on as many
// threads as the rank has, straight to where they belong; who reads a page of memory first also touches it first.
#include "file_binding.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <mutex>
#include <thread>

#include "arguments.h"
#include "arrange_blocks.h"
#include "block_split.h"
#include "kernels/kernels.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define SHARDLOOM_HAS_PREAD 1
#endif

namespace shardloom {
namespace {

constexpr std::int64_t kMaxPosition = (std::int64_t{1} << 53) - 1;

#if defined(SHARDLOOM_HAS_PREAD)

// Bytes of a long run that a thread reads at a time.
constexpr std::int64_t kPieceBytes = std::int64_t{1} << 20;
// What reading costs, roughly: a system call, and a byte from the page cache.
constexpr double kCallNs = 300;
constexpr double kByteNs = 0.1;

// How often a file system that says it is busy is asked again, and after how long.
constexpr int kBusyTries = 25;
constexpr std::chrono::milliseconds kBusyPause{10};

// `runs` runs of `run_bytes`, `stride` bytes apart in the file, dense in memory.
struct Request {
  int fd;
  std::int64_t position;
  std::int64_t run_bytes;
  std::int64_t stride;
  std::uint8_t* out;  // null where the bytes go elsewhere
};

// The first byte of the destination that could not be read, and why: 0 for the end of the file, or an errno.
class Failure {
 public:
  void note(std::int64_t at, int error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    failed_.store(true, std::memory_order_relaxed);
    if (at >= at_) return;
    at_ = at;
    error_ = error;
  }

  bool none() const { return !failed_.load(std::memory_order_relaxed); }
  // For when all threads are done.
  std::int64_t at() const { return at_; }
  int error() const { return error_; }

 private:
  std::mutex mutex_;
  std::atomic<bool> failed_{false};
  std::int64_t at_ = std::numeric_limits<std::int64_t>::max();
  int error_ = 0;
};

// Reads bytes [first, first + count) of all runs together, which lie in one of them, to `out`.
void read_piece(const Request& request, std::int64_t first, std::int64_t count, std::uint8_t* out, Failure& failure) {
  const std::int64_t run = first / request.run_bytes;
  const std::int64_t position = request.position + run * request.stride + (first - run * request.run_bytes);
  int busy = 0;
  for (std::int64_t done = 0; done < count;) {
    const ssize_t received = pread(request.fd, out + done, static_cast<std::size_t>(count - done),
                                   static_cast<off_t>(position + done));
    if (received < 0 && errno == EINTR) continue;
    if (received < 0 && errno == EAGAIN && busy++ < kBusyTries) {
      std::this_thread::sleep_for(kBusyPause);
      continue;
    }
    if (received <= 0) return failure.note(first + done, received == 0 ? 0 : errno);
    done += received;
  }
}

// Cuts [0, count) into a share for each thread, and shares into steps: who is done with its own share takes steps of others.
// Threads of a kernel get equal parts and no more; but while a model loads, the process has other work for the CPUs too, and
// who loses one for a while must not hold up a whole read. Shares are apart, so that no two threads touch the same page first.
class Shares {
 public:
  Shares(std::int64_t count, std::int64_t step, int threads) : step_(step), used_(std::clamp(threads, 1, kMost)) {
    for (int i = 0; i < used_; i++) {
      shares_[i].next.store(count / used_ * i, std::memory_order_relaxed);
      shares_[i].end = i + 1 == used_ ? count : count / used_ * (i + 1);
    }
  }

  // The share that the calling thread begins with.
  int take() { return taken_.fetch_add(1, std::memory_order_relaxed) % used_; }

  // The next step of share `own`, or of another one; empty when there is none left.
  Range next(int own) {
    for (int i = 0; i < used_; i++) {
      Share& share = shares_[(own + i) % used_];
      const std::int64_t begin = share.next.fetch_add(step_, std::memory_order_relaxed);
      if (begin < share.end) return {begin, std::min(begin + step_, share.end)};
    }
    return {0, 0};
  }

 private:
  static constexpr int kMost = 16;

  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  Share shares_[kMost];
  std::int64_t step_;
  int used_;
  std::atomic<int> taken_{0};
};

// Reads all runs in pieces of about kPieceBytes: some runs, or a part of a long one.
void read_all(AddonInstance& instance, const Request& request, std::int64_t runs, Failure& failure) {
  const std::int64_t bytes = runs * request.run_bytes;
  const std::int64_t whole_runs = std::max<std::int64_t>(1, kPieceBytes / request.run_bytes);
  Shares shares(runs == 1 ? bytes : runs, runs == 1 ? kPieceBytes : whole_runs, instance.threads());
  const double calls = static_cast<double>(std::min(runs, whole_runs));
  const Work work = {(bytes + kPieceBytes - 1) / kPieceBytes, 1, kByteNs * kPieceBytes + kCallNs * calls};
  instance.parallel(work, [&](Range, void*) {
    const int own = shares.take();
    for (Range range = shares.next(own); range.begin < range.end && failure.none(); range = shares.next(own)) {
      if (runs == 1) {
        read_piece(request, range.begin, range.end - range.begin, request.out + range.begin, failure);
        continue;
      }
      for (std::int64_t run = range.begin; run < range.end && failure.none(); run++) {
        read_piece(request, run * request.run_bytes, request.run_bytes, request.out + run * request.run_bytes, failure);
      }
    }
  });
}

// Bytes that are staged and taken apart at a time: they stay in the cache.
constexpr std::int64_t kStagedBytes = 96 * 1024;
// What taking a byte apart costs, roughly.
constexpr double kSplitByteNs = 0.1;

std::int64_t blocks_at_a_time(const BlockLayout& layout) {
  return std::max<std::int64_t>(1, kStagedBytes / layout.block_bytes);
}

// Reads and splits the blocks of the range, counted over all runs, `blocks` of them in each.
void read_block_range(const Request& request, const BlockLayout& layout, std::int64_t blocks, Range range,
                      std::uint8_t* codes, std::uint8_t* headers, std::uint8_t* staging, Failure& failure) {
  const std::int64_t most = blocks_at_a_time(layout);
  for (std::int64_t block = range.begin; block < range.end && failure.none();) {
    const std::int64_t left_in_run = blocks - block % blocks;
    const std::int64_t count = std::min({most, left_in_run, range.end - block});
    const std::int64_t first = block * layout.block_bytes;
    read_piece(request, first, count * layout.block_bytes, staging, failure);
    if (!failure.none()) return;
    split_blocks(layout, staging, count, codes + block * layout.code_bytes(), headers + block * layout.header_bytes);
    block += count;
  }
}

// A matrix of codes whose rows lie in groups, and the row at which those that are read begin. Rows after the last whole
// group stay in the order of rows.
struct GroupedRows {
  std::uint8_t* codes;
  std::int64_t rows;
  std::int64_t first;
  std::int64_t row_blocks;

  std::int64_t row_bytes(const BlockLayout& layout) const { return row_blocks * layout.code_bytes(); }
  std::uint8_t* group_at(const BlockLayout& layout, std::int64_t group) const {
    return codes + group * kGroupRows * row_bytes(layout);
  }
};

// Bytes of rows one after another, which may lie in several runs.
void read_rows(const Request& request, std::int64_t row_bytes, Range rows, std::uint8_t* out, Failure& failure) {
  const std::int64_t end = rows.end * row_bytes;
  for (std::int64_t at = rows.begin * row_bytes; at < end && failure.none();) {
    const std::int64_t count = std::min(end - at, request.run_bytes - at % request.run_bytes);
    read_piece(request, at, count, out, failure);
    at += count;
    out += count;
  }
}

// Reads one row, a piece at a time, to where it belongs.
void read_grouped_row(const Request& request, const BlockLayout& layout, const GroupedRows& to, std::int64_t row,
                      std::uint8_t* headers, std::uint8_t* staging, Failure& failure) {
  const std::int64_t most = blocks_at_a_time(layout);
  const std::int64_t group = (to.first + row) / kGroupRows;
  const bool in_group = (group + 1) * kGroupRows <= to.rows;
  std::uint8_t* scratch = staging + kStagedBytes;
  for (std::int64_t block = 0; block < to.row_blocks; block += most) {
    const std::int64_t count = std::min(most, to.row_blocks - block);
    const std::int64_t at = row * to.row_blocks + block;
    read_piece(request, at * layout.block_bytes, count * layout.block_bytes, staging, failure);
    if (!failure.none()) return;
    std::uint8_t* own = headers + at * layout.header_bytes;
    const std::int64_t first = block * layout.code_bytes();
    if (in_group) {
      arrange_row_blocks(layout, staging, count, (to.first + row) % kGroupRows, first, to.group_at(layout, group), own,
                         scratch);
    } else {
      split_blocks(layout, staging, count, to.codes + (to.first + row) * to.row_bytes(layout) + first, own);
    }
  }
}

// How many whole groups are read at a time; 0 where a workspace does not hold one, with its codes beside it.
std::int64_t groups_at_a_time(const BlockLayout& layout, const GroupedRows& to) {
  const std::int64_t staged = to.row_blocks * layout.block_bytes * kGroupRows;
  if (staged + to.row_bytes(layout) * kGroupRows > static_cast<std::int64_t>(kWorkspaceBytes)) return 0;
  return std::max<std::int64_t>(1, kStagedBytes / staged);
}

// Reads the rows of some groups that are among `rows` rows: whole groups in one piece each, others row by row.
void read_groups(const Request& request, const BlockLayout& layout, const GroupedRows& to, std::int64_t rows,
                 Range groups, std::uint8_t* headers, std::uint8_t* workspace, Failure& failure) {
  const std::int64_t most = groups_at_a_time(layout, to);
  const std::int64_t file_bytes = to.row_blocks * layout.block_bytes;
  const std::int64_t whole_end = (to.first + rows) / kGroupRows;
  for (std::int64_t group = groups.begin; group < groups.end && failure.none();) {
    const std::int64_t first = group * kGroupRows - to.first;
    if (most == 0 || first < 0 || group >= whole_end) {
      const Range own = {std::max<std::int64_t>(0, first), std::min(rows, first + kGroupRows)};
      for (std::int64_t row = own.begin; row < own.end && failure.none(); row++) {
        read_grouped_row(request, layout, to, row, headers, workspace, failure);
      }
      group++;
      continue;
    }
    const std::int64_t count = std::min(most, std::min(groups.end, whole_end) - group);
    read_rows(request, file_bytes, {first, first + count * kGroupRows}, workspace, failure);
    if (!failure.none()) return;
    const std::int64_t staged = file_bytes * kGroupRows;
    for (std::int64_t i = 0; i < count; i++) {
      arrange_block_group(layout, workspace + i * staged, to.row_blocks, to.group_at(layout, group + i),
                          headers + (first + i * kGroupRows) * to.row_blocks * layout.header_bytes,
                          workspace + count * staged);
    }
    group += count;
  }
}

void read_all_groups(AddonInstance& instance, const Request& request, const BlockLayout& layout, const GroupedRows& to,
                     std::int64_t rows, std::uint8_t* headers, Failure& failure) {
  const std::int64_t first = to.first / kGroupRows;
  const std::int64_t groups = group_count(to.first + rows) - first;
  const double group_bytes = static_cast<double>(kGroupRows * to.row_blocks * layout.block_bytes);
  const Work work = {groups, 1, (kByteNs + kSplitByteNs) * group_bytes};
  Shares shares(groups, std::max<std::int64_t>(1, groups_at_a_time(layout, to)), instance.threads());
  instance.parallel(work, [&](Range, void* workspace) {
    const int own = shares.take();
    for (Range range = shares.next(own); range.begin < range.end && failure.none(); range = shares.next(own)) {
      read_groups(request, layout, to, rows, {first + range.begin, first + range.end}, headers,
                  static_cast<std::uint8_t*>(workspace), failure);
    }
  });
}

// Throws what the system said, or returns the bytes that were there, of `wanted`.
napi_value outcome(napi_env env, const Failure& failure, std::int64_t wanted) {
  if (!failure.none() && failure.error() != 0) {
    napi_throw_error(env, nullptr, std::strerror(failure.error()));
    return nullptr;
  }
  napi_value result = nullptr;
  napi_create_int64(env, failure.none() ? wanted : failure.at(), &result);
  return result;
}

#endif  // SHARDLOOM_HAS_PREAD

// Returns the bytes of the destination before the first that the file no longer has: all of them, if it is whole.
napi_value read_runs(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "readRuns", 6);
  const std::int64_t fd = arguments.integer("fd", 0, std::numeric_limits<std::int32_t>::max());
  const std::int64_t position = arguments.integer("position", 0, kMaxPosition);
  const std::int64_t run_bytes = arguments.integer("runBytes", 1, kMaxPosition);
  const std::int64_t stride = arguments.integer("stride", 0, kMaxPosition);
  const std::int64_t runs = arguments.integer("runs", 1, kMaxPosition);
  const Bytes destination = arguments.bytes("destination");
  const double wanted = static_cast<double>(run_bytes) * static_cast<double>(runs);
  arguments.expect(wanted == static_cast<double>(destination.length),
                   "expected a destination of %.17g bytes for %lld runs of %lld but received one of %zu", wanted,
                   static_cast<long long>(runs), static_cast<long long>(run_bytes), destination.length);
  const double end = static_cast<double>(position) + static_cast<double>(stride) * static_cast<double>(runs - 1) +
                     static_cast<double>(run_bytes);
  arguments.expect(end <= static_cast<double>(kMaxPosition), "expected runs that end before 2^53 but received %.17g", end);
  if (!arguments.ok()) return nullptr;
#if defined(SHARDLOOM_HAS_PREAD)
  const Request request = {static_cast<int>(fd), position, run_bytes, stride, destination.data};
  Failure failure;
  read_all(arguments.instance(), request, runs, failure);
  return outcome(env, failure, static_cast<std::int64_t>(destination.length));
#else
  static_cast<void>(fd);
  napi_throw_error(env, nullptr, "files are not read natively on this system");
  return nullptr;
#endif
}

// The next arguments: what a block is made of. All parts lie within it.
BlockLayout read_layout(Arguments& arguments) {
  constexpr std::int64_t kMaxBlockBytes = 64 * 1024;
  BlockLayout layout = {};
  layout.block_bytes = arguments.integer("blockBytes", 1, kMaxBlockBytes);
  layout.codes_offset = arguments.integer("codesOffset", 0, kMaxBlockBytes);
  layout.groups = arguments.integer("groups", 1, kMaxBlockBytes);
  layout.group_bytes = arguments.integer("groupBytes", 2, kMaxBlockBytes);
  const std::int64_t bits = arguments.integer("codeBits", 4, 8);
  layout.four_bits = bits == 4;
  layout.header_offset = arguments.integer("headerOffset", 0, kMaxBlockBytes);
  layout.header_bytes = arguments.integer("headerBytes", 0, kMaxBlockBytes);
  arguments.expect(bits == 4 || bits == 8, "expected codeBits to be 4 or 8 but received %lld", static_cast<long long>(bits));
  arguments.expect(layout.group_bytes % 2 == 0, "expected an even groupBytes but received %lld",
                   static_cast<long long>(layout.group_bytes));
  const bool within = layout.codes_offset + layout.code_bytes() <= layout.block_bytes &&
                      layout.header_offset + layout.header_bytes <= layout.block_bytes;
  arguments.expect(within, "expected codes and header to lie within a block of %lld bytes",
                   static_cast<long long>(layout.block_bytes));
  return layout;
}

void expect_bytes(Arguments& arguments, const char* name, const Bytes& view, double expected) {
  arguments.expect(static_cast<double>(view.length) == expected, "expected %s to have %.17g bytes but it has %zu", name,
                   expected, view.length);
}

// Blocks of whole rows, from `first_row` on, of a matrix in groups.
void expect_grouped(Arguments& arguments, const BlockLayout& layout, const Bytes& codes, std::int64_t row_blocks,
                    std::int64_t blocks, double first_row, double count) {
  arguments.expect(blocks % row_blocks == 0, "expected runs of whole rows of %lld blocks but received runs of %lld",
                   static_cast<long long>(row_blocks), static_cast<long long>(blocks));
  arguments.expect(layout.code_bytes() % kUnitRowBytes == 0, "expected a multiple of %lld bytes of codes a block",
                   static_cast<long long>(kUnitRowBytes));
  const double row_bytes = static_cast<double>(row_blocks) * static_cast<double>(layout.code_bytes());
  const double length = static_cast<double>(codes.length);
  arguments.expect(std::fmod(length, row_bytes) == 0, "expected whole rows of %.17g bytes but received %.17g bytes",
                   row_bytes, length);
  const double rows = first_row + count / static_cast<double>(row_blocks);
  arguments.expect(rows * row_bytes <= length, "expected at most %.17g rows but received %.17g", length / row_bytes, rows);
}

// Returns the bytes of all blocks together before the first that the file no longer has.
napi_value read_blocks(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "readBlocks", 16);
  const std::int64_t fd = arguments.integer("fd", 0, std::numeric_limits<std::int32_t>::max());
  const std::int64_t position = arguments.integer("position", 0, kMaxPosition);
  const std::int64_t blocks = arguments.integer("blocks", 1, kMaxPosition);
  const std::int64_t stride = arguments.integer("stride", 0, kMaxPosition);
  const std::int64_t runs = arguments.integer("runs", 1, kMaxPosition);
  const BlockLayout layout = read_layout(arguments);
  const Bytes codes = arguments.bytes("codes");
  const Bytes headers = arguments.bytes("headers");
  const std::int64_t row_blocks = arguments.integer("rowBlocks", 0, kMaxPosition);
  const std::int64_t first_row = arguments.integer("firstRow", 0, kMaxPosition);
  const double count = static_cast<double>(blocks) * static_cast<double>(runs);
  if (row_blocks == 0) {
    expect_bytes(arguments, "codes", codes, count * static_cast<double>(layout.code_bytes()));
  } else {
    expect_grouped(arguments, layout, codes, row_blocks, blocks, static_cast<double>(first_row), count);
  }
  expect_bytes(arguments, "headers", headers, count * static_cast<double>(layout.header_bytes));
  const double end = static_cast<double>(position) + static_cast<double>(stride) * static_cast<double>(runs - 1) +
                     static_cast<double>(blocks) * static_cast<double>(layout.block_bytes);
  arguments.expect(end <= static_cast<double>(kMaxPosition), "expected runs that end before 2^53 but received %.17g", end);
  AddonInstance& instance = arguments.instance();
  arguments.expect(instance.workspace != nullptr, "there was no memory for scratch");
  if (!arguments.ok()) return nullptr;
#if defined(SHARDLOOM_HAS_PREAD)
  static_assert(2 * kStagedBytes <= static_cast<std::int64_t>(kWorkspaceBytes));
  const Request request = {static_cast<int>(fd), position, blocks * layout.block_bytes, stride, nullptr};
  Failure failure;
  if (row_blocks > 0) {
    const std::int64_t row_bytes = row_blocks * layout.code_bytes();
    const GroupedRows to = {codes.data, static_cast<std::int64_t>(codes.length) / row_bytes, first_row, row_blocks};
    read_all_groups(instance, request, layout, to, blocks * runs / row_blocks, headers.data, failure);
    return outcome(env, failure, blocks * runs * layout.block_bytes);
  }
  const Work work = {blocks * runs, 1, (kByteNs + kSplitByteNs) * static_cast<double>(layout.block_bytes)};
  Shares shares(blocks * runs, blocks_at_a_time(layout), instance.threads());
  instance.parallel(work, [&](Range, void* workspace) {
    const int own = shares.take();
    for (Range range = shares.next(own); range.begin < range.end && failure.none(); range = shares.next(own)) {
      read_block_range(request, layout, blocks, range, codes.data, headers.data, static_cast<std::uint8_t*>(workspace),
                       failure);
    }
  });
  return outcome(env, failure, blocks * runs * layout.block_bytes);
#else
  static_cast<void>(fd);
  napi_throw_error(env, nullptr, "files are not read natively on this system");
  return nullptr;
#endif
}

}  // namespace

napi_status register_files(napi_env env, napi_value exports, AddonInstance* instance) {
  const napi_property_descriptor methods[] = {
      {"readRuns", nullptr, read_runs, nullptr, nullptr, nullptr, napi_enumerable, instance},
      {"readBlocks", nullptr, read_blocks, nullptr, nullptr, nullptr, napi_enumerable, instance},
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
