import { dtypeBytes } from "../core/dtype.js";
import { InternalError } from "../core/errors.js";
import { describeShape, elementCount, type Tensor, tensorBytes } from "../core/tensor.js";

/**
 * A tensor as kernels see it: `[rows, columns]`, a vector having one row. Throws InternalError for a shape that is not
 * made of whole numbers, for elements that lie outside the arena, and for a misaligned first element.
 */
export function operandExtents(tensor: Tensor): { readonly rows: number; readonly columns: number } {
  const { name, dtype, shape, byteOffset, arena } = tensor;
  const described = describeShape(dtype, shape);
  if (shape.length === 0 || !shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0)) {
    throw new InternalError(`${name}: expected a shape of whole numbers but received ${described}`, { tensor: name });
  }
  const sizeBytes = tensorBytes(tensor);
  const end = byteOffset + sizeBytes;
  if (!Number.isSafeInteger(end) || byteOffset < 0 || end > arena.buffer.byteLength) {
    throw new InternalError(
      `${name}: expected ${described} to lie inside the ${arena.buffer.byteLength} bytes of its arena but it is at ${byteOffset}`,
      { tensor: name },
    );
  }
  if (byteOffset % dtypeBytes(dtype) !== 0) {
    throw new InternalError(
      `${name}: expected an offset that is a multiple of ${dtypeBytes(dtype)} bytes for ${dtype} but received ${byteOffset}`,
      { tensor: name },
    );
  }
  if (shape.length === 1) return { rows: 1, columns: elementCount(shape) };
  return { rows: shape[0] ?? 0, columns: elementCount(shape.slice(1)) };
}
