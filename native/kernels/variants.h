// The implementations of every kernel, one namespace an instruction set. Only dispatch.cc chooses among them.
#pragma once

#include "kernels.h"

namespace shardloom::portable {

void linear(const LinearArgs& args, Range outputs);
void linear_bf16(const Bf16LinearArgs& args, Range outputs);
void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs);
void linear_int8(const LinearArgs& args, const Int8Matrix& weight, Range outputs);
void quantize_int16(const QuantizeArgs& args, Range rows);
void quantize_int8(const QuantizeArgs& args, Range rows);
void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void embedding_arranged_code4(const EmbeddingArgs& args, const ArrangedCode4& table, Range rows);
void embedding_arranged_int8(const EmbeddingArgs& args, const ArrangedInt8& table, Range rows);
void rms_norm(const NormArgs& args, Range rows);
void add_rms_norm(const NormArgs& args, Range rows);
void head_norm(const HeadNormArgs& args, Range rows);
void rope(const RopeArgs& args, Range rows);
void embedding(const EmbeddingArgs& args, Range rows);
void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows);
void embedding_int8(const EmbeddingArgs& args, const Int8Matrix& table, Range rows);
void gather_rows(const GatherArgs& args, Range rows);
void write_kv(const WriteKvArgs& args, Range rows);
void attention(const AttentionArgs& args, Range units);
void attention_combine(const AttentionArgs& args, Range rows);
void silu_mul(const SiluMulArgs& args, Range rows);
void argmax(const ArgmaxArgs& args, Range rows);
void sum_ranks(const RankSumArgs& args, Range elements);
void narrow_bf16(bf16* out, const float* x, Range elements);

}  // namespace shardloom::portable

namespace shardloom::avx2 {

void linear(const LinearArgs& args, Range outputs);
void linear_bf16(const Bf16LinearArgs& args, Range outputs);
void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs);
void linear_int8(const LinearArgs& args, const Int8Matrix& weight, Range outputs);
void quantize_int16(const QuantizeArgs& args, Range rows);
void quantize_int8(const QuantizeArgs& args, Range rows);
void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void rms_norm(const NormArgs& args, Range rows);
void add_rms_norm(const NormArgs& args, Range rows);
void head_norm(const HeadNormArgs& args, Range rows);
void rope(const RopeArgs& args, Range rows);
void embedding(const EmbeddingArgs& args, Range rows);
void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows);
void embedding_int8(const EmbeddingArgs& args, const Int8Matrix& table, Range rows);
void write_kv(const WriteKvArgs& args, Range rows);
void attention(const AttentionArgs& args, Range units);
void attention_combine(const AttentionArgs& args, Range rows);
void silu_mul(const SiluMulArgs& args, Range rows);
void argmax(const ArgmaxArgs& args, Range rows);
void sum_ranks(const RankSumArgs& args, Range elements);
void narrow_bf16(bf16* out, const float* x, Range elements);

}  // namespace shardloom::avx2

namespace shardloom::avx512 {

void linear(const LinearArgs& args, Range outputs);
void linear_bf16(const Bf16LinearArgs& args, Range outputs);
void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs);
void linear_int8(const LinearArgs& args, const Int8Matrix& weight, Range outputs);
void quantize_int16(const QuantizeArgs& args, Range rows);
void quantize_int8(const QuantizeArgs& args, Range rows);
void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void rms_norm(const NormArgs& args, Range rows);
void add_rms_norm(const NormArgs& args, Range rows);
void head_norm(const HeadNormArgs& args, Range rows);
void rope(const RopeArgs& args, Range rows);
void embedding(const EmbeddingArgs& args, Range rows);
void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows);
void embedding_int8(const EmbeddingArgs& args, const Int8Matrix& table, Range rows);
void write_kv(const WriteKvArgs& args, Range rows);
void attention(const AttentionArgs& args, Range units);
void attention_combine(const AttentionArgs& args, Range rows);
void silu_mul(const SiluMulArgs& args, Range rows);
void argmax(const ArgmaxArgs& args, Range rows);
void sum_ranks(const RankSumArgs& args, Range elements);
void narrow_bf16(bf16* out, const float* x, Range elements);

}  // namespace shardloom::avx512

namespace shardloom::avx512vnni {

void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);

}  // namespace shardloom::avx512vnni

namespace shardloom::avx512bf16 {

void linear_bf16(const Bf16LinearArgs& args, Range outputs);

}  // namespace shardloom::avx512bf16

namespace shardloom::neon {

void linear(const LinearArgs& args, Range outputs);
void linear_bf16(const Bf16LinearArgs& args, Range outputs);
void linear_code4(const LinearArgs& args, const Code4Matrix& weight, Range outputs);
void linear_int8(const LinearArgs& args, const Int8Matrix& weight, Range outputs);
void quantize_int16(const QuantizeArgs& args, Range rows);
void quantize_int8(const QuantizeArgs& args, Range rows);
void arranged_code4_int16(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int16(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);
void rms_norm(const NormArgs& args, Range rows);
void add_rms_norm(const NormArgs& args, Range rows);
void head_norm(const HeadNormArgs& args, Range rows);
void rope(const RopeArgs& args, Range rows);
void embedding(const EmbeddingArgs& args, Range rows);
void embedding_code4(const EmbeddingArgs& args, const Code4Matrix& table, Range rows);
void embedding_int8(const EmbeddingArgs& args, const Int8Matrix& table, Range rows);
void write_kv(const WriteKvArgs& args, Range rows);
void attention(const AttentionArgs& args, Range units);
void attention_combine(const AttentionArgs& args, Range rows);
void silu_mul(const SiluMulArgs& args, Range rows);
void argmax(const ArgmaxArgs& args, Range rows);
void sum_ranks(const RankSumArgs& args, Range elements);
void narrow_bf16(bf16* out, const float* x, Range elements);

}  // namespace shardloom::neon

namespace shardloom::neondotprod {

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);

}  // namespace shardloom::neondotprod

namespace shardloom::neoni8mm {

void arranged_code4_int8(const ArrangedLinearArgs& args, const ArrangedCode4& weight, Range groups);
void arranged_int8_int8(const ArrangedLinearArgs& args, const ArrangedInt8& weight, Range groups);

}  // namespace shardloom::neoni8mm
