#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds addressModulo, adviseHugePages, touch, bind and release to the exports.
napi_status register_memory(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
