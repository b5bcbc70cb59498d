// Exports of the addon for src/kernels/probe.ts.
#include "probe_binding.h"

#include <iterator>

#include "arguments.h"
#include "cpu_features.h"
#include "probe.h"

namespace shardloom {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{1} << 40;
constexpr std::int64_t kMostPasses = 1000;
constexpr double kMostMilliseconds = 10'000;

// A figure, or an exception where the system refused a thread or memory.
napi_value to_value(Arguments& arguments, double figure) {
  napi_value value = nullptr;
  if (figure > 0) {
    napi_create_double(arguments.env(), figure, &value);
  } else {
    napi_throw_error(arguments.env(), nullptr, "the system has no thread or memory for a measurement");
  }
  return value;
}

double read_milliseconds(Arguments& arguments) {
  const double milliseconds = arguments.number("milliseconds");
  arguments.expect(milliseconds > 0 && milliseconds <= kMostMilliseconds,
                   "expected milliseconds up to %.0f but received %.17g", kMostMilliseconds, milliseconds);
  return milliseconds;
}

napi_value read_memory(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "probeRead", 2);
  const std::int64_t bytes = arguments.integer("bytes", std::int64_t{1} << 20, kMostBytes);
  const auto passes = static_cast<int>(arguments.integer("passes", 1, kMostPasses));
  if (!arguments.ok()) return nullptr;
  return to_value(arguments, probe_read(arguments.instance().pool.get(), static_cast<std::size_t>(bytes), passes));
}

napi_value multiply_add(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "probeMultiplyAdd", 1);
  const double milliseconds = read_milliseconds(arguments);
  if (!arguments.ok()) return nullptr;
  return to_value(arguments, probe_multiply_add(arguments.instance().pool.get(), milliseconds));
}

napi_value dot_int8(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "probeDotInt8", 1);
  const double milliseconds = read_milliseconds(arguments);
  if (!arguments.ok()) return nullptr;
  return to_value(arguments, probe_dot_int8(arguments.instance().pool.get(), milliseconds));
}

napi_value dot_bf16(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "probeDotBf16", 1);
  const double milliseconds = read_milliseconds(arguments);
  if (!arguments.ok()) return nullptr;
  napi_value none = nullptr;
  if (best_probe().dot_bf16 == nullptr) return napi_create_double(env, 0, &none) == napi_ok ? none : nullptr;
  return to_value(arguments, probe_dot_bf16(arguments.instance().pool.get(), milliseconds));
}

napi_value get_bf16_pays(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "bf16Pays", 0);
  napi_value pays = nullptr;
  napi_get_boolean(env, arguments.instance().kernels->bf16_pairs && bf16_pays(), &pays);
  return pays;
}

// A probe of what passes between threads.
napi_value between_threads(napi_env env, napi_callback_info info, const char* name,
                           double (*probe)(ThreadPool&, double)) {
  Arguments arguments(env, info, name, 1);
  const double milliseconds = read_milliseconds(arguments);
  const auto& pool = arguments.instance().pool;
  arguments.expect(pool != nullptr, "expected at least 2 threads but there is 1");
  return arguments.ok() ? to_value(arguments, probe(*pool, milliseconds)) : nullptr;
}

napi_value cache_line(napi_env env, napi_callback_info info) {
  return between_threads(env, info, "probeCacheLine", probe_cache_line);
}

napi_value wake(napi_env env, napi_callback_info info) { return between_threads(env, info, "probeWake", probe_wake); }

napi_value fork_join(napi_env env, napi_callback_info info) {
  return between_threads(env, info, "probeForkJoin", probe_fork_join);
}

napi_status feature_names(napi_env env, napi_value* names) {
  const CpuFeatures features = cpu_features();
  napi_status status = napi_create_array_with_length(env, static_cast<std::size_t>(features.count), names);
  for (int i = 0; status == napi_ok && i < features.count; i++) {
    napi_value name = nullptr;
    status = napi_create_string_utf8(env, features.names[i], NAPI_AUTO_LENGTH, &name);
    if (status == napi_ok) status = napi_set_element(env, *names, static_cast<std::uint32_t>(i), name);
  }
  return status;
}

}  // namespace

napi_status register_probes(napi_env env, napi_value exports, AddonInstance* instance) {
  napi_value features = nullptr;
  napi_value isa = nullptr;
  napi_status status = feature_names(env, &features);
  if (status == napi_ok) status = napi_create_string_utf8(env, best_probe().isa, NAPI_AUTO_LENGTH, &isa);
  if (status != napi_ok) return status;
  const auto method = [instance](const char* name, napi_callback callback) {
    return napi_property_descriptor{name, nullptr, callback, nullptr, nullptr, nullptr, napi_enumerable, instance};
  };
  const napi_property_descriptor properties[] = {
      {"cpuFeatures", nullptr, nullptr, nullptr, nullptr, features, napi_enumerable, nullptr},
      {"probeIsa", nullptr, nullptr, nullptr, nullptr, isa, napi_enumerable, nullptr},
      method("probeRead", read_memory),
      method("probeMultiplyAdd", multiply_add),
      method("probeDotInt8", dot_int8),
      method("probeDotBf16", dot_bf16),
      {"bf16Pays", nullptr, nullptr, get_bf16_pays, nullptr, nullptr, napi_enumerable, instance},
      method("probeCacheLine", cache_line),
      method("probeWake", wake),
      method("probeForkJoin", fork_join),
  };
  return napi_define_properties(env, exports, std::size(properties), properties);
}

}  // namespace shardloom
