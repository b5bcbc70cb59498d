#include "arranged_code4_neon.h"
#include "arranged_int8_neon.h"
#include "variants.h"

namespace shardloom::neoni8mm {
namespace {

// A single row has no second one to multiply with.
template <class Format, class Matrix>
void run(const ArrangedLinearArgs& args, const Matrix& weight, Range groups) {
  if (args.rows == 1) return ArrangedLinear<Format, Int8DotProducts>::run(args, weight, groups);
  ArrangedLinear<Format, Int8MatrixProducts>::run(args, weight, groups);
}

}  // namespace

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups) {
  run<ArrangedCode4Format>(args, weight, groups);
}

void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups) {
  run<ArrangedInt8Format>(args, weight, groups);
}

}  // namespace shardloom::neoni8mm
