#include "threads_binding.h"

#include <iterator>

#include "arguments.h"
#include "kernels/kernels.h"

namespace shardloom {
namespace {

constexpr std::int64_t kMostThreads = 1024;
constexpr std::int64_t kMostMicros = 1'000'000;

napi_value get_threads(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "threads", 0);
  const auto& pool = arguments.instance().pool;
  napi_value result = nullptr;
  napi_create_int32(env, pool == nullptr ? 1 : pool->threads(), &result);
  return result;
}

napi_value set_threads(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "setThreads", 3);
  const auto threads = static_cast<int>(arguments.integer("threads", 1, kMostThreads));
  const auto spin_micros = static_cast<std::uint32_t>(arguments.integer("spinMicros", 0, kMostMicros));
  const auto yield_micros = static_cast<std::uint32_t>(arguments.integer("yieldMicros", 0, kMostMicros));
  if (!arguments.ok()) return nullptr;
  auto& pool = arguments.instance().pool;
  // The old helpers first: a system may have no room for both.
  pool.reset();
  if (threads == 1) return nullptr;
  pool = ThreadPool::start(threads, kWorkspaceBytes, {spin_micros, yield_micros});
  if (pool == nullptr) napi_throw_error(env, nullptr, "setThreads: the system has no more threads or memory");
  return nullptr;
}

}  // namespace

napi_status register_threads(napi_env env, napi_value exports, AddonInstance* instance) {
  const napi_property_descriptor properties[] = {
      {"threads", nullptr, nullptr, get_threads, nullptr, nullptr, napi_enumerable, instance},
      {"setThreads", nullptr, set_threads, nullptr, nullptr, nullptr, napi_enumerable, instance},
  };
  return napi_define_properties(env, exports, std::size(properties), properties);
}

}  // namespace shardloom
