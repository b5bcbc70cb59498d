// Exports of the addon for src/core/arena.ts and for whoever binds tensors.
#include "memory_binding.h"

#include <iterator>

#include "arguments.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace shardloom {
namespace {

constexpr std::int64_t kMaxModulo = std::int64_t{1} << 30;
// 2^53 - 1, the largest whole number that JavaScript counts exactly.
constexpr std::int64_t kMaxExtent = (std::int64_t{1} << 53) - 1;

std::uintptr_t address_of(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

std::size_t page_bytes() {
#if defined(__unix__) || defined(__APPLE__)
  const long size = sysconf(_SC_PAGESIZE);
  return size > 0 ? static_cast<std::size_t>(size) : 4096;
#else
  return 4096;
#endif
}

napi_value address_modulo(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "addressModulo", 2);
  const Bytes view = arguments.bytes("view");
  const std::int64_t modulo = arguments.integer("modulo", 1, kMaxModulo);
  arguments.expect((modulo & (modulo - 1)) == 0, "expected modulo to be a power of two but received %lld",
                   static_cast<long long>(modulo));
  if (!arguments.ok()) return nullptr;
  napi_value result = nullptr;
  napi_create_int64(env, static_cast<std::int64_t>(address_of(view.data) % static_cast<std::uintptr_t>(modulo)),
                    &result);
  return result;
}

// Whole pages inside the view, advised; false where the system has no huge pages.
bool advise(const Bytes& view) {
#if defined(MADV_HUGEPAGE)
  const std::uintptr_t page = page_bytes();
  const std::uintptr_t begin = (address_of(view.data) + page - 1) / page * page;
  const std::uintptr_t end = (address_of(view.data) + view.length) / page * page;
  return end > begin && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  static_cast<void>(view);
  return false;
#endif
}

napi_value advise_huge_pages(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "adviseHugePages", 1);
  const Bytes view = arguments.bytes("view");
  if (!arguments.ok()) return nullptr;
  napi_value result = nullptr;
  napi_get_boolean(env, advise(view), &result);
  return result;
}

napi_value touch(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "touch", 1);
  const Bytes view = arguments.bytes("view");
  if (!arguments.ok()) return nullptr;
  // A write, and one that the compiler may not drop: a read would map the shared zero page only.
  volatile std::uint8_t* data = view.data;
  const std::size_t step = page_bytes();
  for (std::size_t i = 0; i < view.length; i += step) data[i] = 0;
  return nullptr;
}

DType read_dtype(Arguments& arguments) {
  char name[16];
  arguments.text("dtype", name, sizeof name);
  DType dtype = DType::u8;
  if (arguments.ok() && !dtype_from_name(name, &dtype)) arguments.fail_type("unknown dtype \"%s\"", name);
  return dtype;
}

napi_value bind(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "bind", 4);
  const Bytes view = arguments.bytes("view");
  const DType dtype = read_dtype(arguments);
  const std::int64_t rows = arguments.integer("rows", 0, kMaxExtent);
  const std::int64_t columns = arguments.integer("columns", 0, kMaxExtent);
  if (arguments.ok() && !view.shared) {
    arguments.fail_type("expected a view over a SharedArrayBuffer, which cannot be detached");
  }
  const std::size_t misaligned = address_of(view.data) % dtype_bytes(dtype);
  arguments.expect(misaligned == 0, "expected the address of %s to be a multiple of %zu but it is %zu beyond one",
                   dtype_name(dtype), dtype_bytes(dtype), misaligned);
  // In floating point: the product of two extents may not fit an integer, and no view is longer than 2^53 bytes.
  const double elements = static_cast<double>(rows) * static_cast<double>(columns);
  const double bytes = elements * static_cast<double>(dtype_bytes(dtype));
  arguments.expect(static_cast<double>(view.length) == bytes,
                   "expected %.17g bytes for [%lld, %lld] %s but received a view of %zu", bytes,
                   static_cast<long long>(rows), static_cast<long long>(columns), dtype_name(dtype), view.length);
  if (!arguments.ok()) return nullptr;
  const std::int32_t handle =
      arguments.instance().handles.bind(view.value, Region{view.data, view.length, dtype, rows, columns, nullptr});
  arguments.expect(handle != 0, "the table of bound tensors is full");
  napi_value result = nullptr;
  napi_create_int32(env, handle, &result);
  return arguments.ok() ? result : nullptr;
}

napi_value release(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "release", 1);
  const double handle = arguments.number("handle");
  if (!arguments.ok()) return nullptr;
  arguments.expect(arguments.instance().handles.release(handle), "expected a bound handle but received %.17g", handle);
  return nullptr;
}

}  // namespace

napi_status register_memory(napi_env env, napi_value exports, AddonInstance* instance) {
  const auto method = [instance](const char* name, napi_callback callback) {
    return napi_property_descriptor{name, nullptr, callback, nullptr, nullptr, nullptr, napi_enumerable, instance};
  };
  const napi_property_descriptor methods[] = {
      method("addressModulo", address_modulo), method("adviseHugePages", advise_huge_pages),
      method("touch", touch),                  method("bind", bind),
      method("release", release),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
