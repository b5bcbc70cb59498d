// Linear layers whose activations are rounded to bf16, as their weights are, for any vector type.
//
// A pair of neighbouring inputs takes 32 bits and is what linear_simd.h takes for one: its tiles, chunks and panels serve
// here with `Pairs` for a vector type, which multiplies and adds the two products of each lane's pair. There are 16 lanes
// on every instruction set, so that a chunk is the same 2048 inputs and sums run in one order (kernels.h).
#pragma once

#include "linear_simd.h"
#include "unroll.h"

namespace shardloom {
namespace {

// Sixteen pairs in vectors of V. Dot::add(sums, a, b) adds the products of a's pairs with b's, the second one first.
template <class V, class Dot>
struct Pairs {
  static constexpr int kLanes = 16;
  static constexpr int kParts = kLanes / V::kLanes;
  static_assert(kParts == 1 || kParts == 2);
  static constexpr int kRegisters = V::kRegisters / kParts;

  V part[kParts];

  template <class Make>
  static Pairs of(Make make) {
    Pairs pairs;
    repeat<kParts>([&](auto p) { pairs.part[p] = make(p); });
    return pairs;
  }

  // How many of the first `count` elements belong to part p.
  static std::int64_t count_in(int p, std::int64_t count) {
    const std::int64_t rest = count - p * V::kLanes;
    return rest < 0 ? 0 : rest < V::kLanes ? rest : V::kLanes;
  }

  static Pairs zero() {
    return of([](auto) { return V::zero(); });
  }
  static Pairs load(const float* at) {
    return of([&](auto p) { return V::load(at + p * V::kLanes); });
  }
  static Pairs load_first(const float* at, std::int64_t count) {
    return of([&](auto p) {
      const std::int64_t own = count_in(p, count);
      return own == 0 ? V::zero() : V::load_first(at + p * V::kLanes, own);
    });
  }
  void store(float* at) const {
    repeat<kParts>([&](auto p) { part[p].store(at + p * V::kLanes); });
  }
  void store_first(float* at, std::int64_t count) const {
    repeat<kParts>([&](auto p) {
      if (count_in(p, count) > 0) part[p].store_first(at + p * V::kLanes, count_in(p, count));
    });
  }
  static Pairs kept(Pairs pairs) {
    return of([&](auto p) { return V::kept(pairs.part[p]); });
  }
  static Pairs fma(Pairs a, Pairs b, Pairs sums) {
    return of([&](auto p) { return Dot::add(sums.part[p], a.part[p], b.part[p]); });
  }
  // Folds lane i and lane i + 8, then + 4, + 2, + 1.
  static void sum4(Pairs a, Pairs b, Pairs c, Pairs d, float* out) {
    if constexpr (kParts == 1) {
      V::sum4(a.part[0], b.part[0], c.part[0], d.part[0], out);
    } else {
      V::sum4(a.part[0] + a.part[1], b.part[0] + b.part[1], c.part[0] + c.part[1], d.part[0] + d.part[1], out);
    }
  }
};

// Without an instruction for it: a bf16 is the upper half of an f32.
template <class V>
struct WidenedDot {
  static V add(V sums, V a, V b) {
    sums = V::fma(V::second_of_pairs(a), V::second_of_pairs(b), sums);
    return V::fma(V::first_of_pairs(a), V::first_of_pairs(b), sums);
  }
};

template <class P>
struct Bf16Linear {
  using Dense = Linear<P>;
  // From this many rows on, copying weights into a panel pays: streams that stand a power of two apart push each other
  // out of the cache.
  static constexpr std::int64_t kPanelFromRows = 32;

  // The same call with pairs for elements.
  static LinearArgs of_pairs(const Bf16LinearArgs& args) {
    LinearArgs pairs = {};
    pairs.out = args.out;
    pairs.out_stride = args.out_stride;
    pairs.x = reinterpret_cast<const float*>(args.x);
    pairs.x_stride = args.x_stride / 2;
    pairs.weight = args.weight;
    pairs.weight_dtype = DType::f32;
    pairs.bias = args.bias;
    pairs.rows = args.rows;
    pairs.inputs = args.inputs / 2;
    pairs.workspace = args.workspace;
    return pairs;
  }

  static void run(const Bf16LinearArgs& args, Range outputs) {
    const LinearArgs pairs = of_pairs(args);
    if (args.rows < kPanelFromRows) {
      Dense::template few_rows<float>(pairs, outputs);
    } else {
      const typename Dense::template DenseRows<float> weights = {static_cast<const float*>(pairs.weight), pairs.inputs};
      Dense::panels(pairs, weights, outputs);
    }
  }
};

// Where there is no instruction for it, in the mode that its caller has set (kernels.h). Not part of the caller: arithmetic
// must not be moved out of the mode.
template <class V>
__attribute__((noinline)) void linear_bf16_widened(const Bf16LinearArgs& args, Range outputs) {
  Bf16Linear<Pairs<V, WidenedDot<V>>>::run(args, outputs);
}

}  // namespace
}  // namespace shardloom
