// Elementary functions on any vector type `V`. Polynomials are Chebyshev fits made for this project.
#pragma once

#include "kernels.h"

namespace shardloom {
namespace {

// exp(x) for x <= 0, within 2 ulp; 0 where the result would be below the smallest normal number. NaN stays NaN.
template <class V>
inline V exp_nonpositive(V x) {
  const V log2_e = V::set(1.44269502162933349609375f);
  // ln 2 in two parts: a product of `high` with a whole number below 2^9 is exact.
  const V ln2_high = V::set(0.693145751953125f);
  const V ln2_low = V::set(1.428606765330187e-06f);
  // x = n ln 2 + r with |r| <= ln 2 / 2. The bound on x keeps n in range; max returns its second operand for NaN.
  const V n = V::round(V::max(V::set(-87.5f), x) * log2_e);
  const V r = V::fma(n, V::set(0.0f) - ln2_low, V::fma(n, V::set(0.0f) - ln2_high, x));
  // exp(r) = 1 + r + r^2 q(r), |relative error| < 1.1e-8 before rounding.
  V q = V::set(0.0013926198007538915f);
  q = V::fma(q, r, V::set(0.008363190107047558f));
  q = V::fma(q, r, V::set(0.041666556149721146f));
  q = V::fma(q, r, V::set(0.16666576266288757f));
  q = V::fma(q, r, V::set(0.5f));
  const V exp_r = V::fma(r * r, q, r) + V::set(1.0f);
  return V::where_less(x, V::set(-87.33654f), V::zero(), exp_r * V::exp2_whole(n));
}

// tanh(x), within 2 ulp. NaN stays NaN.
template <class V>
inline V tanh(V x) {
  const V magnitude = V::abs(x);
  const V one = V::set(1.0f);
  const V e = exp_nonpositive(V::set(-2.0f) * magnitude);
  const V large = V::copy_sign((one - e) / (one + e), x);
  // Near zero the quotient above cancels: tanh(x) = x + x z p(z) with z = x^2.
  const V z = x * x;
  V p = V::set(-0.006096714176237583f);
  p = V::fma(p, z, V::set(0.020997179672122f));
  p = V::fma(p, z, V::set(-0.05385090783238411f));
  p = V::fma(p, z, V::set(0.1333276927471161f));
  p = V::fma(p, z, V::set(-0.333333283662796f));
  const V small = V::fma(x * z, p, x);
  return V::where_less(magnitude, V::set(0.625f), small, large);
}

}  // namespace
}  // namespace shardloom
