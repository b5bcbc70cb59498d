#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds cpuFeatures, probeIsa and the probes to the exports.
napi_status register_probes(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
