#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds what prepares weights, and the kernels that read prepared ones, to the exports.
napi_status register_prepared(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
