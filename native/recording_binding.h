#pragma once

#include <node_api.h>

#include "instance.h"

namespace shardloom {

// Adds startRecording, stopRecording, releaseRecording, replay and replayTimed to the exports.
napi_status register_recordings(napi_env env, napi_value exports, AddonInstance* instance);

}  // namespace shardloom
