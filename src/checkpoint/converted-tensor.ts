import { convertFloats, dtypeBytes, type FloatDType, isFloat } from "../core/dtype.js";
import { elementCount } from "../core/tensor.js";
import type { CheckpointTensor } from "./checkpoint.js";

/** Elements converted at a time. */
const CHUNK_ELEMENTS = 65_536;

/**
 * A floating-point tensor as elements of another dtype, converted as they are read, to nearest even. Other tensors stay as
 * they are. Reading throws CheckpointError `FLOAT_OVERFLOW` where a value does not fit.
 */
export function convertedTensor(source: CheckpointTensor, dtype: FloatDType): CheckpointTensor {
  const { name, shape, file, dtype: from } = source;
  if (from === dtype || !isFloat(from)) return source;
  const [width, sourceWidth] = [dtypeBytes(dtype), dtypeBytes(from)];
  const sizeBytes = elementCount(shape) * width;
  let stored = new Uint8Array(0);
  let converted = new Uint8Array(0);
  return {
    name,
    dtype,
    shape,
    file,
    read(destination, byteOffset) {
      const end = byteOffset + destination.length;
      if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || end > sizeBytes) {
        throw new RangeError(`${name}: bytes ${byteOffset} to ${end} are outside its ${sizeBytes} bytes`);
      }
      for (let first = Math.floor(byteOffset / width); first * width < end; first += CHUNK_ELEMENTS) {
        const count = Math.min(CHUNK_ELEMENTS, Math.ceil(end / width) - first);
        if (stored.length < count * sourceWidth) stored = new Uint8Array(count * sourceWidth);
        if (converted.length < count * width) converted = new Uint8Array(count * width);
        const [input, output] = [stored.subarray(0, count * sourceWidth), converted.subarray(0, count * width)];
        source.read(input, first * sourceWidth);
        convertFloats(input, from, output, dtype, name);
        // A read may begin and end within an element.
        const start = Math.max(byteOffset - first * width, 0);
        const stop = Math.min(end - first * width, output.length);
        destination.set(output.subarray(start, stop), first * width + start - byteOffset);
      }
    },
  };
}
