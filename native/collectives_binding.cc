// Exports of the addon for src/collectives/native-engine.ts. A region of collectives is bound as one u8 tensor. The
// four that wait for all ranks return a CollectiveStatus; they block the calling thread, and only the other ranks, the
// deadline or a poisoned region get it back.
#include "collectives_binding.h"

#include <iterator>

#include "arguments.h"
#include "collectives.h"
#include "collectives_probe.h"
#include "operation.h"

namespace shardloom {
namespace {

constexpr std::int64_t kMostElements = INT32_MAX;

CollectiveRank read_rank(Arguments& arguments) {
  const Region region = arguments.tensor("region", DType::u8);
  const auto rank = static_cast<std::uint32_t>(arguments.integer("rank", 0, INT32_MAX));
  const auto site = static_cast<std::uint32_t>(arguments.integer("site", 0, INT32_MAX));
  CollectiveRank collective;
  if (arguments.ok()) {
    const KernelTable& kernels = *arguments.instance().kernels;
    arguments.expect(CollectiveRank::open(region.data, region.bytes, rank, site, kernels, collective),
                     "expected a region of collectives with a rank %u but received %zu other bytes", rank,
                     region.bytes);
  }
  return collective;
}

/** The next argument: a tensor whose elements all-gather and broadcast can carry. */
Region read_payload(Arguments& arguments, const char* name) {
  const Region tensor = arguments.tensor(name);
  if (arguments.ok() && tensor.dtype != DType::f32 && tensor.dtype != DType::i32) {
    arguments.fail_type("expected %s to be f32 or i32 but it is %s", name, dtype_name(tensor.dtype));
  }
  return tensor;
}

CollectiveType type_of(const Region& tensor) {
  return tensor.dtype == DType::f32 ? CollectiveType::kF32 : CollectiveType::kI32;
}

// Has the call return the status.
void finish(Arguments& arguments, const CollectiveRank& collective, CollectiveStatus status) {
  arguments.finish(static_cast<std::uint32_t>(status), collective.waited_micros());
}

void all_reduce(Arguments& arguments) {
  CollectiveRank collective = read_rank(arguments);
  const Region data = arguments.tensor("data", DType::f32);
  const std::int64_t count = arguments.integer("count", 0, kMostElements);
  if (arguments.ok()) {
    arguments.expect(count <= data.rows * data.columns, "expected at most %lld elements but received count %lld",
                     static_cast<long long>(data.rows * data.columns), static_cast<long long>(count));
  }
  if (!arguments.ok()) return;
  finish(arguments, collective, collective.all_reduce(static_cast<float*>(data.data), static_cast<std::size_t>(count)));
}

constexpr Operation kAllReduce = {"allReduce", 5, all_reduce};

void all_gather(Arguments& arguments) {
  CollectiveRank collective = read_rank(arguments);
  const Region data = read_payload(arguments, "data");
  const Region out = read_payload(arguments, "out");
  const std::int64_t rows = arguments.integer("rows", 0, kMostElements);
  const std::int64_t width = arguments.integer("width", 0, kMostElements);
  const auto checksum = static_cast<std::uint32_t>(arguments.integer("checksum", 0, INT32_MAX));
  if (arguments.ok()) {
    arguments.expect(data.dtype == out.dtype, "expected data and out of one dtype but received %s and %s",
                     dtype_name(data.dtype), dtype_name(out.dtype));
    arguments.expect(rows <= out.rows && (width == 0 || rows <= data.rows) && width <= data.columns,
                     "expected at most [%lld, %lld] of data and %lld rows of out but received [%lld, %lld]",
                     static_cast<long long>(data.rows), static_cast<long long>(data.columns),
                     static_cast<long long>(out.rows), static_cast<long long>(rows), static_cast<long long>(width));
  }
  if (!arguments.ok()) return;
  const ConstMatrix source{static_cast<const std::uint32_t*>(data.data), static_cast<std::size_t>(data.columns)};
  const Matrix destination{static_cast<std::uint32_t*>(out.data), static_cast<std::size_t>(out.columns)};
  finish(arguments, collective,
         collective.all_gather(source, destination, static_cast<std::size_t>(rows), static_cast<std::size_t>(width),
                               type_of(data), checksum));
}

constexpr Operation kAllGather = {"allGather", 8, all_gather};

void broadcast(Arguments& arguments) {
  CollectiveRank collective = read_rank(arguments);
  const Region data = read_payload(arguments, "data");
  const std::int64_t count = arguments.integer("count", 0, kMostElements);
  const auto root = static_cast<std::uint32_t>(arguments.integer("root", 0, INT32_MAX));
  if (arguments.ok()) {
    arguments.expect(count <= data.rows * data.columns && root < collective.world_size(),
                     "expected at most %lld elements from a rank below %u but received count %lld, root %u",
                     static_cast<long long>(data.rows * data.columns), collective.world_size(),
                     static_cast<long long>(count), root);
  }
  if (!arguments.ok()) return;
  finish(arguments, collective,
         collective.broadcast(static_cast<std::uint32_t*>(data.data), static_cast<std::size_t>(count), type_of(data),
                              root));
}

constexpr Operation kBroadcast = {"broadcast", 6, broadcast};

void barrier(Arguments& arguments) {
  CollectiveRank collective = read_rank(arguments);
  if (arguments.ok()) finish(arguments, collective, collective.barrier());
}

constexpr Operation kBarrier = {"barrier", 3, barrier};

/** Takes the bytes themselves, so that a thread which is no rank need not bind them. */
napi_value wake(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "wakeCollectives", 1);
  const Bytes region = arguments.bytes("region");
  if (arguments.ok()) {
    arguments.expect(wake_collectives(region.data, region.length),
                     "expected a region of collectives but received %zu bytes", region.length);
  }
  return nullptr;
}

napi_value exchange(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "exchangeLines", 4);
  const Region memory = arguments.tensor("memory", DType::u8);
  const auto side = static_cast<std::uint32_t>(arguments.integer("side", 0, 1));
  const auto lines = static_cast<std::size_t>(arguments.integer("lines", 0, kMostElements));
  const auto rounds = static_cast<std::uint32_t>(arguments.integer("rounds", 1, kMostElements));
  if (arguments.ok()) {
    arguments.expect(memory.bytes >= exchange_bytes(lines) && reinterpret_cast<std::uintptr_t>(memory.data) % 64 == 0,
                     "expected %zu aligned bytes but received %zu", exchange_bytes(lines), memory.bytes);
  }
  if (!arguments.ok()) return nullptr;
  napi_value nanos = nullptr;
  napi_create_double(env, exchange_lines(memory.data, side, lines, rounds), &nanos);
  return nanos;
}

}  // namespace

napi_status register_collectives(napi_env env, napi_value exports, AddonInstance* instance) {
  const auto method = [&](const char* name, napi_callback callback) {
    return napi_property_descriptor{name,    nullptr, callback,        nullptr,
                                    nullptr, nullptr, napi_enumerable, instance};
  };
  const napi_property_descriptor methods[] = {
      exported<kAllReduce>(instance), exported<kAllGather>(instance),  exported<kBroadcast>(instance),
      exported<kBarrier>(instance),   method("wakeCollectives", wake), method("exchangeLines", exchange),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
