#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds the kernels that read weights, for each execution format, to the exports: linear layers and embedding lookup.
napi_status register_linear(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
