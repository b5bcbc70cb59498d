// Operations: what JavaScript asks for with numbers only, as all kernels and collectives are. A call of one can be written down and be
// carried out again (recording.h).
#pragma once

#include <node_api.h>

#include <cstddef>

#include "arguments.h"
#include "recording.h"

namespace shardloom {

struct Operation {
  const char* name;  // of the exported function
  std::size_t count;  // of its arguments
  // Reads, checks and does it. Throws in JavaScript and leaves the arguments not ok() where something is wrong. The arguments
  // are finished() if the call returns a number.
  void (*run)(Arguments& arguments);
};

template <const Operation& operation>
napi_value call_operation(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, operation.name, operation.count);
  if (arguments.ok()) operation.run(arguments);
  Recording* recording = arguments.instance().recording.get();
  if (recording != nullptr && arguments.ok()) recording->add(operation, arguments);
  napi_value outcome = nullptr;
  if (arguments.finished()) napi_create_uint32(env, arguments.outcome(), &outcome);
  return outcome;
}

// The operation as a function of the addon.
template <const Operation& operation>
napi_property_descriptor exported(AddonInstance* instance) {
  return {operation.name, nullptr, call_operation<operation>, nullptr, nullptr, nullptr, napi_enumerable, instance};
}

}  // namespace shardloom
