// The addon's entry point: one AddonInstance for every napi_env that loads it, so that worker threads share nothing.
#include <node_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>

#include "arguments.h"
#include "collectives_binding.h"
#include "dispatch.h"
#include "file_binding.h"
#include "instance.h"
#include "kernel_binding.h"
#include "linear_binding.h"
#include "memory_binding.h"
#include "prepared_binding.h"
#include "probe_binding.h"
#include "recording_binding.h"
#include "threads_binding.h"

namespace shardloom {
namespace {

// Version of the exports; must equal NATIVE_ABI of src/core/native-addon.ts.
constexpr std::int32_t kAbi = 8;

void destroy_instance(napi_env, void* data, void*) { delete static_cast<AddonInstance*>(data); }

napi_value get_isa(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "isa", 0);
  napi_value result = nullptr;
  napi_create_string_utf8(env, arguments.instance().kernels->isa, NAPI_AUTO_LENGTH, &result);
  return result;
}

napi_value select_isa(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "selectIsa", 1);
  char wanted[64];
  arguments.text("isa", wanted, sizeof wanted);
  if (!arguments.ok()) return nullptr;
  const KernelTables supported = supported_kernels();
  char names[64] = "";
  for (int i = 0; i < supported.count; i++) {
    if (std::strcmp(supported.tables[i]->isa, wanted) == 0) {
      arguments.instance().kernels = supported.tables[i];
      return nullptr;
    }
    const std::size_t used = std::strlen(names);
    std::snprintf(names + used, sizeof names - used, "%s%s", i == 0 ? "" : ", ", supported.tables[i]->isa);
  }
  arguments.expect(false, "expected an instruction set of this machine (%s) but received \"%s\"", names, wanted);
  return nullptr;
}

napi_status supported_isas(napi_env env, napi_value* names) {
  const KernelTables supported = supported_kernels();
  napi_status status = napi_create_array_with_length(env, static_cast<std::size_t>(supported.count), names);
  for (int i = 0; status == napi_ok && i < supported.count; i++) {
    napi_value name = nullptr;
    status = napi_create_string_utf8(env, supported.tables[i]->isa, NAPI_AUTO_LENGTH, &name);
    if (status == napi_ok) status = napi_set_element(env, *names, static_cast<std::uint32_t>(i), name);
  }
  return status;
}

napi_status register_facts(napi_env env, napi_value exports, AddonInstance* instance) {
  napi_value abi = nullptr;
  napi_value isas = nullptr;
  napi_status status = napi_create_int32(env, kAbi, &abi);
  if (status == napi_ok) status = supported_isas(env, &isas);
  if (status != napi_ok) return status;
  const napi_property_descriptor properties[] = {
      {"abi", nullptr, nullptr, nullptr, nullptr, abi, napi_enumerable, nullptr},
      {"supportedIsas", nullptr, nullptr, nullptr, nullptr, isas, napi_enumerable, nullptr},
      {"isa", nullptr, nullptr, get_isa, nullptr, nullptr, napi_enumerable, instance},
      {"selectIsa", nullptr, select_isa, nullptr, nullptr, nullptr, napi_enumerable, instance},
  };
  return napi_define_properties(env, exports, std::size(properties), properties);
}

// Null when memory is short.
AddonInstance* create_instance(napi_env env) {
  auto* instance = new (std::nothrow) AddonInstance(env);
  if (instance == nullptr || instance->workspace != nullptr) return instance;
  delete instance;
  return nullptr;
}

}  // namespace

napi_value initialize(napi_env env, napi_value exports) {
  AddonInstance* instance = create_instance(env);
  if (instance == nullptr) {
    napi_throw_error(env, nullptr, "not enough memory for the native addon");
    return nullptr;
  }
  instance->kernels = supported_kernels().tables[0];
  napi_status status = napi_set_instance_data(env, instance, destroy_instance, nullptr);
  if (status != napi_ok) {
    delete instance;
  } else {
    status = register_facts(env, exports, instance);
    if (status == napi_ok) status = register_memory(env, exports, instance);
    if (status == napi_ok) status = register_files(env, exports, instance);
    if (status == napi_ok) status = register_kernels(env, exports, instance);
    if (status == napi_ok) status = register_linear(env, exports, instance);
    if (status == napi_ok) status = register_prepared(env, exports, instance);
    if (status == napi_ok) status = register_recordings(env, exports, instance);
    if (status == napi_ok) status = register_collectives(env, exports, instance);
    if (status == napi_ok) status = register_threads(env, exports, instance);
    if (status == napi_ok) status = register_probes(env, exports, instance);
  }
  if (status == napi_ok) return exports;
  napi_throw_error(env, nullptr, "the native addon could not register its functions");
  return nullptr;
}

}  // namespace shardloom

NAPI_MODULE_INIT() { return shardloom::initialize(env, exports); }
