#include "linear_portable.h"

#include "variants.h"

namespace shardloom::portable {
namespace {

template <class T>
void run(const LinearArgs& args, Range outputs) {
  linear_of(args, outputs, [&](float* out, std::int64_t row, std::int64_t input, std::int64_t count) {
    const T* w = static_cast<const T*>(args.weight) + row * args.inputs + input;
    for (std::int64_t k = 0; k < count; k++) out[k] = to_float(w[k]);
  });
}

}  // namespace

void linear(const LinearArgs& args, Range outputs) {
  with_float_type(args.weight_dtype, [&](auto* type) { run<std::remove_cvref_t<decltype(*type)>>(args, outputs); });
}

}  // namespace shardloom::portable
