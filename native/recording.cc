#include "recording.h"

#include <chrono>
#include <new>
#include <utility>

#include "arguments.h"
#include "operation.h"

namespace shardloom {

void Recording::add(const Operation& operation, const Arguments& arguments) {
  if (!complete_) return;
  try {
    calls_.push_back({&operation, numbers_.size()});
    for (std::size_t i = 0; i < operation.count; i++) numbers_.push_back(arguments.number_at(i));
  } catch (const std::bad_alloc&) {
    complete_ = false;
  }
}

double Recording::replay(napi_env env, AddonInstance& instance, double* micros) const {
  using Clock = std::chrono::steady_clock;
  using Micros = std::chrono::duration<double, std::micro>;
  Clock::time_point begin = micros == nullptr ? Clock::time_point{} : Clock::now();
  double finished = 0;
  for (const auto& [operation, first] : calls_) {
    Arguments arguments(env, instance, operation->name, numbers_.data() + first);
    operation->run(arguments);
    if (!arguments.ok()) return 0;
    if (arguments.outcome() != 0) return 256 * finished + arguments.outcome();
    if (arguments.finished()) finished++;
    if (micros == nullptr) continue;
    const Clock::time_point end = Clock::now();
    *micros++ = Micros(end - begin).count();
    *micros++ = arguments.waited_micros();
    begin = end;
  }
  return 0;
}

std::int64_t RecordingTable::add(std::unique_ptr<Recording> recording) {
  try {
    recordings_.emplace(last_ + 1, std::move(recording));
  } catch (const std::bad_alloc&) {
    return 0;
  }
  return ++last_;
}

bool RecordingTable::release(double number) {
  return find(number) != nullptr && recordings_.erase(static_cast<std::int64_t>(number)) == 1;
}

const Recording* RecordingTable::find(double number) const {
  // The comparison also refuses NaN.
  if (!(number >= 1.0 && number <= static_cast<double>(last_))) return nullptr;
  const auto key = static_cast<std::int64_t>(number);
  if (static_cast<double>(key) != number) return nullptr;
  const auto found = recordings_.find(key);
  return found == recordings_.end() ? nullptr : found->second.get();
}

}  // namespace shardloom
