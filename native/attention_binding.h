#pragma once

#include <node_api.h>

namespace shardloom {

// attention() of src/kernels/kernels.ts.
napi_value attention(napi_env env, napi_callback_info info);

}  // namespace shardloom
