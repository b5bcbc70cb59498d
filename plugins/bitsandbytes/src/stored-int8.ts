/** An LLM.int8 weight on disk: codes by row, and the scales of the rows (`X.SCB`). */
import { type CheckpointTensor, elementCount } from "shardloom/plugin";
import { describeTensor, invalid } from "./checkpoint-error.js";
import type { EightBitWeight } from "./quantized-weight.js";
import { readFiniteFloats } from "./stored-4bit.js";

/** What the checkpoint holds beside a weight. */
export interface EightBitParts {
  scales: CheckpointTensor | null;
  format: CheckpointTensor | null;
}

/** `weight_format` of codes that lie row by row. The others are layouts of GPU kernels that no version writes any more. */
const ROW_FORMAT = 0;

/**
 * Opens a weight with its sidecars; reads the format byte, nothing else. Throws CheckpointError `MISSING_QUANT_STATE`,
 * `UNSUPPORTED_WEIGHT_FORMAT`, `SHAPE_MISMATCH`, `DTYPE_MISMATCH`.
 */
export function openEightBit(weight: CheckpointTensor, { scales, format }: EightBitParts): EightBitWeight {
  const { name, file } = weight;
  if (weight.dtype !== "i8") throw invalid("DTYPE_MISMATCH", weight, "i8 codes", describeTensor(weight));
  const [rows, columns] = weight.shape;
  if (rows === undefined || columns === undefined || weight.shape.length !== 2) {
    throw invalid("SHAPE_MISMATCH", weight, "[rows, columns]", describeTensor(weight));
  }
  if (scales === null) {
    throw invalid("MISSING_QUANT_STATE", weight, "the scales of its rows beside it (SCB)", "none");
  }
  if (scales.dtype !== "f32") throw invalid("DTYPE_MISMATCH", scales, `[${rows}] f32`, describeTensor(scales));
  if (scales.shape.length !== 1 || scales.shape[0] !== rows) {
    throw invalid("SHAPE_MISMATCH", scales, `[${rows}] f32`, describeTensor(scales));
  }
  if (format !== null) checkFormat(format);
  return {
    format: "int8",
    name,
    file,
    shape: [rows, columns],
    readCodes: (destination, firstElement) => weight.read(destination, firstElement),
    readScales: (destination, firstRow) => readFiniteFloats(scales, destination, firstRow),
  };
}

function checkFormat(tensor: CheckpointTensor): void {
  if (tensor.dtype !== "u8") throw invalid("DTYPE_MISMATCH", tensor, "one u8", describeTensor(tensor));
  if (elementCount(tensor.shape) !== 1) throw invalid("SHAPE_MISMATCH", tensor, "one u8", describeTensor(tensor));
  const byte = new Uint8Array(1);
  tensor.read(byte, 0);
  const [received = ROW_FORMAT] = byte;
  if (received !== ROW_FORMAT) {
    throw invalid("UNSUPPORTED_WEIGHT_FORMAT", tensor, `${ROW_FORMAT}, codes row by row`, received);
  }
}
