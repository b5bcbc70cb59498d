#include "arguments.h"

#include <cmath>
#include <cstdio>

namespace shardloom {

Arguments::Arguments(napi_env env, napi_callback_info info, const char* function, std::size_t count)
    : env_(env), function_(function) {
  std::size_t received = kMax;
  void* data = nullptr;
  napi_get_cb_info(env, info, &received, values_, nullptr, &data);
  instance_ = static_cast<AddonInstance*>(data);
  if (received != count) fail_type("expected %zu arguments but received %zu", count, received);
}

Arguments::Arguments(napi_env env, AddonInstance& instance, const char* function, const double* numbers)
    : env_(env), function_(function), instance_(&instance), numbers_(numbers) {}

// Only to be called while ok(): then at least `count` values are there.
napi_value Arguments::next() { return values_[position_++]; }

bool Arguments::next_number(double* number) {
  if (numbers_ == nullptr) return napi_get_value_double(env_, next(), number) == napi_ok;
  *number = numbers_[position_++];
  return true;
}

double Arguments::number_at(std::size_t index) const {
  if (numbers_ != nullptr) return numbers_[index];
  double number = 0;
  napi_get_value_double(env_, values_[index], &number);
  return number;
}

void Arguments::finish(std::uint32_t outcome, double waited_micros) {
  finished_ = true;
  outcome_ = outcome;
  waited_micros_ = waited_micros;
}

void Arguments::fail(bool type_error, const char* format, std::va_list values) {
  if (!ok_) return;
  ok_ = false;
  char message[320];
  const int prefix = std::snprintf(message, sizeof message, "%s: ", function_);
  std::vsnprintf(message + prefix, sizeof message - static_cast<std::size_t>(prefix), format, values);
  if (type_error) {
    napi_throw_type_error(env_, nullptr, message);
  } else {
    napi_throw_range_error(env_, nullptr, message);
  }
}

void Arguments::expect(bool condition, const char* format, ...) {
  if (condition) return;
  std::va_list values;
  va_start(values, format);
  fail(false, format, values);
  va_end(values);
}

void Arguments::fail_type(const char* format, ...) {
  std::va_list values;
  va_start(values, format);
  fail(true, format, values);
  va_end(values);
}

Region Arguments::tensor(const char* name) {
  if (!ok_) return Region{};
  double handle = 0;
  if (!next_number(&handle)) {
    fail_type("expected a handle for %s", name);
    return Region{};
  }
  const Region* region = instance_->handles.find(handle);
  if (region == nullptr) {
    expect(false, "expected a bound handle for %s but received %.17g", name, handle);
    return Region{};
  }
  return *region;
}

Region Arguments::tensor(const char* name, DType dtype) {
  const Region region = tensor(name);
  if (ok_ && region.dtype != dtype) {
    fail_type("expected %s to be %s but it is %s", name, dtype_name(dtype), dtype_name(region.dtype));
  }
  return ok_ ? region : Region{};
}

Region Arguments::optional_tensor(const char* name, DType dtype) {
  if (!ok_) return Region{};
  double handle = 1;
  if (next_number(&handle) && handle == 0) return Region{};
  position_--;
  return tensor(name, dtype);
}

std::int64_t Arguments::integer(const char* name, std::int64_t least, std::int64_t most) {
  if (!ok_) return 0;
  double value = 0;
  if (!next_number(&value)) {
    fail_type("expected a number for %s", name);
    return 0;
  }
  if (!(value >= static_cast<double>(least) && value <= static_cast<double>(most)) || value != std::floor(value)) {
    expect(false, "expected %s to be a whole number from %lld to %lld but received %.17g", name,
           static_cast<long long>(least), static_cast<long long>(most), value);
    return 0;
  }
  return static_cast<std::int64_t>(value);
}

double Arguments::number(const char* name) {
  if (!ok_) return 0;
  double value = 0;
  if (!next_number(&value)) {
    fail_type("expected a number for %s", name);
    return 0;
  }
  expect(std::isfinite(value), "expected %s to be finite but received %.17g", name, value);
  return ok_ ? value : 0;
}

Bytes Arguments::bytes(const char* name) {
  if (!ok_) return Bytes{};
  const napi_value view = next();
  napi_typedarray_type type = napi_int8_array;
  std::size_t length = 0;
  void* start = nullptr;
  napi_value buffer = nullptr;
  const napi_status status = napi_get_typedarray_info(env_, view, &type, &length, &start, &buffer, nullptr);
  if (status != napi_ok || type != napi_uint8_array) {
    fail_type("expected a Uint8Array for %s", name);
    return Bytes{};
  }
  bool unshared = true;
  napi_is_arraybuffer(env_, buffer, &unshared);
  return Bytes{view, static_cast<std::uint8_t*>(start), length, !unshared};
}

void Arguments::text(const char* name, char* out, std::size_t capacity) {
  out[0] = '\0';
  if (!ok_) return;
  std::size_t length = 0;
  const napi_value value = next();
  if (napi_get_value_string_utf8(env_, value, nullptr, 0, &length) != napi_ok || length >= capacity) {
    fail_type("expected a string of fewer than %zu bytes for %s", capacity, name);
    return;
  }
  napi_get_value_string_utf8(env_, value, out, capacity, &length);
}

}  // namespace shardloom
