#pragma once

#include "operation.h"

namespace shardloom {

// attention() of src/kernels/kernels.ts.
extern const Operation kAttention;

}  // namespace shardloom
