// Exports of the addon for `record` of src/kernels/native.ts.
#include "recording_binding.h"

#include <iterator>
#include <memory>
#include <new>
#include <utility>

#include "arguments.h"
#include "recording.h"

namespace shardloom {
namespace {

// The number, unless something was thrown.
napi_value to_value(napi_env env, double number) {
  napi_value value = nullptr;
  return napi_create_double(env, number, &value) == napi_ok ? value : nullptr;
}

// The next argument: a recording. Null after throwing.
const Recording* read_recording(Arguments& arguments) {
  const double number = arguments.number("recording");
  if (!arguments.ok()) return nullptr;
  const Recording* recording = arguments.instance().recordings.find(number);
  arguments.expect(recording != nullptr, "expected a recording but received %.17g", number);
  return recording;
}

napi_value start_recording(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "startRecording", 0);
  if (!arguments.ok()) return nullptr;
  std::unique_ptr<Recording>& recording = arguments.instance().recording;
  arguments.expect(recording == nullptr, "expected one recording at a time");
  if (!arguments.ok()) return nullptr;
  recording.reset(new (std::nothrow) Recording());
  arguments.expect(recording != nullptr, "not enough memory for a recording");
  return nullptr;
}

napi_value stop_recording(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "stopRecording", 0);
  if (!arguments.ok()) return nullptr;
  std::unique_ptr<Recording> recording = std::move(arguments.instance().recording);
  arguments.expect(recording != nullptr, "expected a recording in progress");
  arguments.expect(recording == nullptr || recording->complete(), "not enough memory for a recording");
  if (!arguments.ok()) return nullptr;
  const std::int64_t number = arguments.instance().recordings.add(std::move(recording));
  arguments.expect(number != 0, "not enough memory for a recording");
  return arguments.ok() ? to_value(env, static_cast<double>(number)) : nullptr;
}

napi_value release_recording(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "releaseRecording", 1);
  const double number = arguments.number("recording");
  if (!arguments.ok()) return nullptr;
  arguments.expect(arguments.instance().recordings.release(number), "expected a recording but received %.17g", number);
  return nullptr;
}

napi_value replay(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "replay", 1);
  const Recording* recording = read_recording(arguments);
  return arguments.ok() ? to_value(env, recording->replay(env, arguments.instance(), nullptr)) : nullptr;
}

napi_value replay_timed(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info, "replayTimed", 2);
  const Recording* recording = read_recording(arguments);
  const Bytes micros = arguments.bytes("micros");
  if (!arguments.ok()) return nullptr;
  const bool aligned = reinterpret_cast<std::uintptr_t>(micros.data) % alignof(double) == 0;
  const std::size_t needed = 2 * recording->calls() * sizeof(double);
  arguments.expect(aligned && micros.length == needed, "expected %zu aligned bytes but received %zu", needed,
                   micros.length);
  if (!arguments.ok()) return nullptr;
  return to_value(env, recording->replay(env, arguments.instance(), reinterpret_cast<double*>(micros.data)));
}

}  // namespace

napi_status register_recordings(napi_env env, napi_value exports, AddonInstance* instance) {
  const auto method = [instance](const char* name, napi_callback callback) {
    return napi_property_descriptor{name, nullptr, callback, nullptr, nullptr, nullptr, napi_enumerable, instance};
  };
  const napi_property_descriptor methods[] = {
      method("startRecording", start_recording),
      method("stopRecording", stop_recording),
      method("releaseRecording", release_recording),
      method("replay", replay),
      method("replayTimed", replay_timed),
  };
  return napi_define_properties(env, exports, std::size(methods), methods);
}

}  // namespace shardloom
