#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds the kernels of src/kernels/kernels.ts to the exports.
napi_status register_kernels(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
