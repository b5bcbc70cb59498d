#include "instance.h"

#include <new>

#include "kernels/kernels.h"

namespace shardloom {
namespace {

constexpr std::align_val_t kWorkspaceAlignment{64};

}  // namespace

AddonInstance::AddonInstance(napi_env env)
    : handles(env), workspace(::operator new(kWorkspaceBytes, kWorkspaceAlignment, std::nothrow)), weights(env) {}

AddonInstance::~AddonInstance() { ::operator delete(workspace, kWorkspaceAlignment); }

}  // namespace shardloom
