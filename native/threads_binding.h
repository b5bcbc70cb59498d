// Exports of the addon for the threads of a rank.
#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

napi_status register_threads(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
