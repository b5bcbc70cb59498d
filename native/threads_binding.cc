#include "threads_binding.h"

#include <atomic>
#include <iterator>
#include <vector>

#include "arguments.h"
#include "kernels/kernels.h"
#include "thread_place.h"

namespace shardloom {
namespace {

constexpr std::int64_t kMostThreads = 1024;
constexpr std::int64_t kMostMicros = 1'000'000;
constexpr std::int64_t kMostIds = 65'536;

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

struct Place {
  const std::int32_t* cpus;
  int count;
  bool each;  // thread i keeps to cpus[i] alone
  int node;   // -1 for none
};

bool take(const Place& place, int thread) {
  // Containers forbid the preference often; without it memory lies near the CPU that touches it first.
  if (place.node >= 0) prefer_node(place.node);
  return place.each ? keep_to_cpus(place.cpus + thread, 1) : keep_to_cpus(place.cpus, place.count);
}

bool place_all(ThreadPool* pool, const Place& place) {
  if (pool == nullptr) return take(place, 0);
  struct Context {
    const Place* place;
    std::atomic<bool>* kept;
  };
  std::atomic<bool> kept = true;
  const Context context = {&place, &kept};
  const auto task = [](const void* given, Range range, void*) {
    const auto& own = *static_cast<const Context*>(given);
    if (!take(*own.place, static_cast<int>(range.begin))) *own.kept = false;
  };
  pool->run({pool->threads(), 1, 0}, pool->threads(), task, &context, nullptr);
  return kept;
}

// Returns what the system calls the helpers, in order; none where it has no such numbers.
napi_value helper_ids(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "helperIds", 0);
  const auto& pool = arguments.instance().pool;
  std::vector<std::int64_t> ids(pool == nullptr ? 1 : static_cast<std::size_t>(pool->threads()), -1);
  if (pool != nullptr) {
    const auto task = [](const void* given, Range range, void*) {
      auto& own = *static_cast<std::vector<std::int64_t>* const*>(given);
      (*own)[static_cast<std::size_t>(range.begin)] = thread_id();
    };
    auto* all = &ids;
    pool->run({pool->threads(), 1, 0}, pool->threads(), task, &all, nullptr);
  }
  napi_value result = nullptr;
  napi_create_array(env, &result);
  std::uint32_t count = 0;
  for (std::size_t i = 1; i < ids.size() && ids[i] >= 0; i++) {
    napi_value id = nullptr;
    napi_create_int64(env, ids[i], &id);
    napi_set_element(env, result, count++, id);
  }
  return result;
}

napi_value place_threads(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "placeThreads", 3);
  const Bytes list = arguments.bytes("cpus");
  const bool each = arguments.integer("each", 0, 1) == 1;
  const auto node = static_cast<int>(arguments.integer("node", -1, kMostIds));
  const auto count = static_cast<int>(list.length / sizeof(std::int32_t));
  const auto& pool = arguments.instance().pool;
  const int threads = pool == nullptr ? 1 : pool->threads();
  const auto* cpus = reinterpret_cast<const std::int32_t*>(list.data);
  if (arguments.ok()) {
    const bool aligned = list.length % sizeof(std::int32_t) == 0 &&
                         reinterpret_cast<std::uintptr_t>(list.data) % alignof(std::int32_t) == 0;
    arguments.expect(aligned && count > 0 && count <= kMostIds && (!each || count == threads),
                     "expected the CPUs of %d threads but received %zu bytes", threads, list.length);
  }
  for (int i = 0; arguments.ok() && i < count; i++) {
    arguments.expect(cpus[i] >= 0 && cpus[i] < kMostIds, "expected ids of CPUs but received %d", cpus[i]);
  }
  if (!arguments.ok()) return nullptr;
  napi_value result = nullptr;
  napi_get_boolean(env, place_all(pool.get(), {cpus, count, each, node}), &result);
  return result;
}

}  // namespace

napi_status register_threads(napi_env env, napi_value exports, AddonInstance* instance) {
  const napi_property_descriptor properties[] = {
      {"threads", nullptr, nullptr, get_threads, nullptr, nullptr, napi_enumerable, instance},
      {"setThreads", nullptr, set_threads, nullptr, nullptr, nullptr, napi_enumerable, instance},
      {"helperIds", nullptr, helper_ids, nullptr, nullptr, nullptr, napi_enumerable, instance},
      {"placeThreads", nullptr, place_threads, nullptr, nullptr, nullptr, napi_enumerable, instance},
  };
  return napi_define_properties(env, exports, std::size(properties), properties);
}

}  // namespace shardloom
