// Reads and checks the arguments of one call from JavaScript, or of one that was written down (recording.h).
//
// The first thing that is wrong throws a TypeError or RangeError in JavaScript and is remembered; later reads return
// harmless values (empty regions, zeros). So a callback reads and checks everything in a row, and touches memory only
// if `ok()` still holds at the end.
#pragma once

#include <node_api.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>

#include "instance.h"

namespace shardloom {

// A Uint8Array. Its memory is good for the current call only.
struct Bytes {
  napi_value value;
  std::uint8_t* data;
  std::size_t length;
  bool shared;  // lies over a SharedArrayBuffer
};

class Arguments {
 public:
  static constexpr std::size_t kMax = 20;

  // `function` names the exported function in messages; it expects exactly `count` arguments.
  Arguments(napi_env env, napi_callback_info info, const char* function, std::size_t count);
  // Arguments of a call that was written down: as many numbers as the function expects.
  Arguments(napi_env env, AddonInstance& instance, const char* function, const double* numbers);
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  bool ok() const { return ok_; }
  napi_env env() const { return env_; }
  AddonInstance& instance() const { return *instance_; }

  // The next argument: a bound handle. The region is a copy: it stays good whatever happens to the table.
  Region tensor(const char* name);
  // The next argument: a bound handle whose elements must be of `dtype`.
  Region tensor(const char* name, DType dtype);
  // The next argument: a bound handle, or 0, which leaves `data` null.
  Region optional_tensor(const char* name, DType dtype);
  // The next argument: a whole number from `least` to `most`.
  std::int64_t integer(const char* name, std::int64_t least, std::int64_t most);
  // The next argument: a finite number.
  double number(const char* name);
  // The next argument: a Uint8Array.
  Bytes bytes(const char* name);
  // The next argument: a string of fewer than `capacity` bytes, zero-terminated.
  void text(const char* name, char* out, std::size_t capacity);

  // Has the call return a number: 0, or why it came to nothing, below 256. `waited_micros` of its time went by waiting for
  // other threads that make the same call.
  void finish(std::uint32_t outcome, double waited_micros);
  bool finished() const { return finished_; }
  std::uint32_t outcome() const { return outcome_; }
  double waited_micros() const { return waited_micros_; }

  // Argument `index` of a call whose arguments were found to be numbers.
  double number_at(std::size_t index) const;

  // Throws a RangeError with the formatted message, which begins with the function's name, unless `condition` holds.
  __attribute__((format(printf, 3, 4))) void expect(bool condition, const char* format, ...);
  // Throws a TypeError with the formatted message.
  __attribute__((format(printf, 2, 3))) void fail_type(const char* format, ...);

 private:
  napi_value next();
  // The next argument; false where it is no number.
  bool next_number(double* number);
  void fail(bool type_error, const char* format, std::va_list values);

  napi_env env_;
  const char* function_;
  AddonInstance* instance_ = nullptr;
  std::size_t position_ = 0;
  bool ok_ = true;
  bool finished_ = false;
  std::uint32_t outcome_ = 0;
  double waited_micros_ = 0;
  // Where the arguments are, unless they are values.
  const double* numbers_ = nullptr;
  napi_value values_[kMax];
};

}  // namespace shardloom
