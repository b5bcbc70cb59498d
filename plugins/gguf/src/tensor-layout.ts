/** From what a header says of its tensors to tensors whose bytes are known to be in the file. */
import { CheckpointError, dtypeBytes, type RandomAccessFile, UnsupportedError } from "shardloom/plugin";
import type { Container, TensorDescription } from "./container.js";
import { READABLE_FORMATS, type TensorFormat, tensorFormat, tensorTypeName } from "./tensor-formats.js";

/** A tensor as it lies in the file. */
export interface StoredTensor {
  readonly name: string;
  readonly format: TensorFormat;
  /** Row-major: the last extent varies fastest. */
  readonly shape: readonly number[];
  /** Byte of the file where its data starts. */
  readonly position: number;
  readonly sizeBytes: number;
}

/**
 * Checks that every tensor has a name of its own, a readable type, a shape of whole blocks, and an aligned extent of its
 * own inside the file.
 *
 * Throws CheckpointError `INVALID_HEADER` or `TRUNCATED_FILE`, and UnsupportedError `UNSUPPORTED_TENSOR_TYPE`.
 */
export function layOutTensors(container: Container, file: RandomAccessFile): ReadonlyMap<string, StoredTensor> {
  const tensors = new Map<string, StoredTensor>();
  for (const description of container.tensors) {
    if (tensors.has(description.name)) {
      throw invalid(file, description.name, "every tensor name once", "it twice");
    }
    tensors.set(description.name, layOut(description, container, file));
  }
  checkOverlaps([...tensors.values()], file);
  return tensors;
}

function layOut(description: TensorDescription, container: Container, file: RandomAccessFile): StoredTensor {
  const { name } = description;
  const format = tensorFormat(description.type);
  if (format === null) {
    const received = tensorTypeName(description.type);
    throw new UnsupportedError(
      "UNSUPPORTED_TENSOR_TYPE",
      `${file.path}: expected ${name} to be one of ${READABLE_FORMATS.join(", ")} but received ${received}`,
      { file: file.path, tensor: name, expected: READABLE_FORMATS.join(", "), received },
    );
  }
  const { shape, elements } = checkShape(description, format, file);
  const sizeBytes = (elements / format.blockElements) * format.blockBytes;
  const offset = Number(description.offset);
  if (offset % container.alignment !== 0) {
    throw invalid(file, name, `an offset that is a multiple of ${container.alignment}`, String(description.offset));
  }
  const position = container.dataOffset + offset;
  if (position + sizeBytes > file.sizeBytes) {
    throw new CheckpointError(
      "TRUNCATED_FILE",
      `${file.path}: expected ${sizeBytes} bytes of ${name} at byte ${position} but the file has ${file.sizeBytes} bytes`,
      { file: file.path, tensor: name, expected: position + sizeBytes, received: file.sizeBytes },
    );
  }
  return { name, format, shape, position, sizeBytes };
}

function checkShape(
  { name, dimensions }: TensorDescription,
  format: TensorFormat,
  file: RandomAccessFile,
): { shape: readonly number[]; elements: number } {
  const received = `[${dimensions.join(", ")}] (fastest first)`;
  const elements = dimensions.reduce((product, dimension) => product * dimension, 1n);
  // Any element takes more than a quarter of a byte once it is read, so this also keeps byte counts exact.
  if (elements < 1n || elements * BigInt(dtypeBytes(format.dtype)) > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw invalid(file, name, "extents of at least 1 and a size that is a safe integer", received);
  }
  const shape = dimensions.map(Number).reverse();
  if ((shape.at(-1) ?? 0) % format.blockElements !== 0) {
    throw invalid(file, name, `rows of whole ${format.name} blocks of ${format.blockElements} elements`, received);
  }
  return { shape, elements: Number(elements) };
}

function checkOverlaps(tensors: StoredTensor[], file: RandomAccessFile): void {
  tensors.sort((a, b) => a.position - b.position);
  let previous: StoredTensor | undefined;
  for (const tensor of tensors) {
    if (previous !== undefined && tensor.position < previous.position + previous.sizeBytes) {
      throw invalid(
        file,
        tensor.name,
        `data at or after byte ${previous.position + previous.sizeBytes}, where ${previous.name} ends,`,
        `byte ${tensor.position}`,
      );
    }
    previous = tensor;
  }
}

function invalid(file: RandomAccessFile, tensor: string, expected: string, received: string): CheckpointError {
  return new CheckpointError(
    "INVALID_HEADER",
    `${file.path}: tensor ${tensor}: expected ${expected} but received ${received}`,
    {
      file: file.path,
      tensor,
      expected,
      received,
    },
  );
}
