// 4-bit codes on AVX-512. The scale and the minimum of a block are applied to the sixteen entries of the codebook
// rather than to each element; one shuffle then looks sixteen elements up.
#include "block_linear_simd.h"
#include "variants.h"
#include "vector_avx512.h"

namespace shardloom::avx512 {
namespace {

template <bool kMinimums>
struct Code4 {
  using Matrix = Code4Matrix;
  using Code = std::uint8_t;
  // The codebook with a scale and a minimum applied.
  struct Scale {
    __m512 values;
  };

  static constexpr int kStep = 16;
  static constexpr int kCodesPerByte = 2;
  static constexpr bool kArranged = true;
  static constexpr bool kAnyInputs = false;
  template <int M>
  static constexpr int streams() {
    return M == 1 ? 8 : 4;
  }

  __m512 codebook;

  explicit Code4(const Code4Matrix& weight) : codebook(_mm512_loadu_ps(weight.codebook)) {}

  Scale scale(float scale, float minimum) const {
    const __m512 scaled = _mm512_mul_ps(codebook, _mm512_set1_ps(scale));
    if constexpr (!kMinimums) return {scaled};
    return {_mm512_add_ps(scaled, _mm512_set1_ps(minimum))};
  }

  // Sixteen codes are one 64-bit word. It goes to all eight lanes of 64 bits, lane q shifted so that code q is lowest in
  // its lower half and code q + 8 in its upper half; a shuffle looks at the lowest four bits only. Code n, from the
  // lowest bits up, belongs to input n ^ 1.
  template <int kInputs>
  void decode(const std::uint8_t* codes, const Scale& scale, Vec (&out)[kInputs / Vec::kLanes]) const {
    const __m512i shifts = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
    for (int i = 0; i < kInputs / Vec::kLanes; i++) {
      std::int64_t word;
      std::memcpy(&word, codes + 8 * i, sizeof word);
      out[i].v = _mm512_permutexvar_ps(_mm512_srlv_epi64(_mm512_set1_epi64(word), shifts), scale.values);
    }
  }

  static Vec arrange(Vec v) {
    return {_mm512_permutexvar_ps(_mm512_setr_epi32(1, 9, 0, 8, 3, 11, 2, 10, 5, 13, 4, 12, 7, 15, 6, 14), v.v)};
  }
  static Vec restore(Vec v) {
    return {_mm512_permutexvar_ps(_mm512_setr_epi32(2, 0, 6, 4, 10, 8, 14, 12, 3, 1, 7, 5, 11, 9, 15, 13), v.v)};
  }
};

}  // namespace

void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs) {
  if (weight.minimums == nullptr) return BlockLinear<Vec, Code4<false>>::linear(args, weight, outputs);
  BlockLinear<Vec, Code4<true>>::linear(args, weight, outputs);
}

void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows) {
  if (table.minimums == nullptr) return BlockLinear<Vec, Code4<false>>::embedding(args, table, rows);
  BlockLinear<Vec, Code4<true>>::embedding(args, table, rows);
}

}  // namespace shardloom::avx512
