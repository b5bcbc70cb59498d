// Exports of the addon that read files.
#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

napi_status register_files(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
