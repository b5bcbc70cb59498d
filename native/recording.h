// Calls of operations, written down while they were made, to be carried out again in one call of the addon.
//
// What is written down are the numbers that JavaScript passed, handles among them: they are looked up, and everything is
// checked, each time anew, so memory may change as it likes, and a handle that was released is refused.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace shardloom {

struct AddonInstance;
struct Operation;
class Arguments;

class Recording {
 public:
  // Writes down a call that has just been carried out. When memory is short the recording is no longer complete().
  void add(const Operation& operation, const Arguments& arguments);
  bool complete() const { return complete_; }
  std::size_t calls() const { return calls_.size(); }

  // Carries the calls out in their order, up to the first that throws in JavaScript, or that returns an outcome other than
  // 0: then the result is 256 * n + outcome if n calls returned 0 before, otherwise 0. `micros`, unless it is null, has room for
  // two numbers a call: what it takes, and how much of that it waits for other threads, in microseconds.
  double replay(napi_env env, AddonInstance& instance, double* micros) const;

 private:
  struct Call {
    const Operation* operation;
    std::size_t first;  // of its numbers
  };

  std::vector<Call> calls_;
  std::vector<double> numbers_;
  bool complete_ = true;
};

// Recordings that JavaScript knows by number. They last until they are released: a rank's thread runs steps without ever
// returning to the event loop, where Node.js would tell of values that were collected.
class RecordingTable {
 public:
  // 0 when memory is short. No number is given twice.
  std::int64_t add(std::unique_ptr<Recording> recording);
  bool release(double number);
  // Null when no recording has this number.
  const Recording* find(double number) const;

 private:
  std::unordered_map<std::int64_t, std::unique_ptr<Recording>> recordings_;
  std::int64_t last_ = 0;
};

}  // namespace shardloom
