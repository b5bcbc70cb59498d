// What calls that read weights are given: read, and checked against each other.
#pragma once

#include "arguments.h"
#include "kernels/kernels.h"
#include "operand_checks.h"

namespace shardloom {

// A weight of blocks of codes, as its operands were bound.
struct BlockOperands {
  Region codes;
  Region codebook;  // code4 only
  Region scales;
  Region minimums;  // empty for none, else of the dtype of the scales
};

// The next arguments: codes, codebook, scales and minimums.
BlockOperands read_code4(Arguments& arguments);
// The next arguments: codes, scales and minimums.
BlockOperands read_int8(Arguments& arguments);

// The next argument: blockSize, which must suit the inputs, and each block must have its scale and minimum. Returns a
// size that is safe to divide by.
std::int64_t read_block_size(Arguments& arguments, const BlockOperands& weight, std::int64_t inputs, bool may_be_row);

// The next argument: blockSize.
Code4Matrix read_code4_matrix(Arguments& arguments, const BlockOperands& weight);
// The next arguments: blockSize and multiplier.
Int8Matrix read_int8_matrix(Arguments& arguments, const BlockOperands& weight);

void expect_apart(Arguments& arguments, const Region& out, const BlockOperands& weight);

// Checks what a linear layer of `outputs` rows of `inputs` elements is given beside its weight, whose fields of the
// result are left empty, as is the workspace.
LinearArgs linear_args(Arguments& arguments, const Region& out, const Region& x, const Region& bias, std::int64_t rows,
                       std::int64_t first_column, std::int64_t outputs, std::int64_t inputs);

// Checks what a lookup in a table of `id_count` rows of `width` elements is given beside the table.
EmbeddingArgs embedding_args(Arguments& arguments, const Region& out, const Region& ids, std::int64_t rows,
                             std::int64_t first_id, std::int64_t id_count, std::int64_t width);

}  // namespace shardloom
