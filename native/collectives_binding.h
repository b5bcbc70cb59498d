#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds allReduce, allGather, broadcast, barrier, wakeCollectives and exchangeLines to the exports.
napi_status register_collectives(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
