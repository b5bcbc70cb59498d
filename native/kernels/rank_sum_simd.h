// Sums over ranks, and what travels for them, for any vector type `V`. Element by element: the bits are the same for
// every instruction set.
#pragma once

#include "../prefetch.h"
#include "numbers.h"

namespace shardloom {
namespace {

template <class V>
struct RankSum {
  // How many lines of another rank are requested ahead of the sum. They come one by one out of another core's cache: a
  // small all-reduce takes their latency divided by the number under way.
  static constexpr std::int64_t kLinesAhead = 32;
  static constexpr std::int64_t kLineBytes = 64;
  // Two lines of f32, one of bf16.
  static constexpr std::int64_t kBlock = 32;

  template <class Element>
  static void request(const RankSumArgs& args, std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < args.ranks; r++) {
      if (r == args.own) continue;
      const auto* source = static_cast<const Element*>(args.sources[r]);
      for (std::int64_t i = begin; i < end; i += kLineBytes / static_cast<std::int64_t>(sizeof(Element))) {
        prefetch(source + i);
      }
    }
  }

  // In one NaN for all: hardware differs in the payload that it passes on.
  static V unified(V sum) {
    constexpr std::uint32_t kAll = V::kLanes == 32 ? ~0u : (1u << V::kLanes) - 1;
    if (V::equal_bits(sum, sum) == kAll) return sum;
    float lanes[V::kLanes];
    sum.store(lanes);
    for (float& lane : lanes) lane = lane == lane ? lane : float_of_bits(0x7fc00000u);
    return V::load(lanes);
  }

  template <class Element>
  static V sum_at(const RankSumArgs& args, std::int64_t at) {
    V sum = V::load(static_cast<const Element*>(args.sources[0]) + at);
    for (std::int64_t r = 1; r < args.ranks; r++) {
      sum = sum + V::load(static_cast<const Element*>(args.sources[r]) + at);
    }
    return unified(sum);
  }

  template <class Element>
  static V sum_of_first(const RankSumArgs& args, std::int64_t at, std::int64_t count) {
    V sum = V::load_first(static_cast<const Element*>(args.sources[0]) + at, count);
    for (std::int64_t r = 1; r < args.ranks; r++) {
      sum = sum + V::load_first(static_cast<const Element*>(args.sources[r]) + at, count);
    }
    return unified(sum);
  }

  template <class Element>
  static void run_as(const RankSumArgs& args, Range elements) {
    constexpr std::int64_t kAhead = kLinesAhead * kLineBytes / static_cast<std::int64_t>(sizeof(Element));
    std::int64_t i = elements.begin;
    request<Element>(args, i, i + kAhead < elements.end ? i + kAhead : elements.end);
    for (; i + kBlock <= elements.end; i += kBlock) {
      if (i + kAhead < elements.end) request<Element>(args, i + kAhead, i + kAhead + kBlock);
      // Whole vectors are read from all sources before they are written: `out` may be one of them.
      for (std::int64_t at = i; at < i + kBlock; at += V::kLanes) {
        const V sum = sum_at<Element>(args, at);
        sum.store(args.out + at);
        if (args.copy != nullptr) sum.store(args.copy + at);
      }
    }
    for (; i < elements.end; i += V::kLanes) {
      const std::int64_t rest = elements.end - i < V::kLanes ? elements.end - i : V::kLanes;
      const V sum = sum_of_first<Element>(args, i, rest);
      sum.store_first(args.out + i, rest);
      if (args.copy != nullptr) sum.store_first(args.copy + i, rest);
    }
  }

  static void run(const RankSumArgs& args, Range elements) {
    if (args.payload == DType::bf16) run_as<bf16>(args, elements);
    else run_as<float>(args, elements);
  }

  static void narrow(bf16* out, const float* x, Range elements) {
    std::int64_t i = elements.begin;
    for (; i + V::kLanes <= elements.end; i += V::kLanes) V::load(x + i).store(out + i);
    if (i < elements.end) V::load_first(x + i, elements.end - i).store_first(out + i, elements.end - i);
  }
};

}  // namespace
}  // namespace shardloom
