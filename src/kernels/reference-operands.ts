/** What the reference kernels bind: typed arrays over the memory of tensors, looked up by handle. */
import { f32ToBf16, f32ToF16, widenTable } from "../core/dtype.js";
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { bytesOf, f32Of, i32Of, type Tensor, u16Of } from "../core/tensor.js";
import { operandExtents } from "./operand-extents.js";

/** Elements that hold real numbers, read and written as f32 whatever their dtype. */
export interface FloatView {
  /** `out[i]` = element `start + i`, for every i of out. */
  read(start: number, out: Float32Array): void;
  /** Element `start + i` = `values[i]`, rounded to nearest, ties to even. */
  write(start: number, values: Float32Array): void;
}

class F32View implements FloatView {
  readonly #elements: Float32Array;

  constructor(elements: Float32Array) {
    this.#elements = elements;
  }

  read(start: number, out: Float32Array): void {
    out.set(this.#elements.subarray(start, start + out.length));
  }

  write(start: number, values: Float32Array): void {
    this.#elements.set(values, start);
  }
}

/** bf16 or f16: 16-bit patterns, widened by a table of all 65,536 of them. */
class HalfView implements FloatView {
  readonly #elements: Uint16Array;
  readonly #widened: Float32Array;
  readonly #narrow: (value: number) => number;

  constructor(elements: Uint16Array, widened: Float32Array, narrow: (value: number) => number) {
    this.#elements = elements;
    this.#widened = widened;
    this.#narrow = narrow;
  }

  read(start: number, out: Float32Array): void {
    const elements = this.#elements;
    const widened = this.#widened;
    for (let i = 0; i < out.length; i++) out[i] = widened[elements[start + i] ?? 0] ?? 0;
  }

  write(start: number, values: Float32Array): void {
    for (let i = 0; i < values.length; i++) this.#elements[start + i] = this.#narrow(values[i] ?? 0);
  }
}

interface Bound {
  readonly bytes: Uint8Array;
  /** Of an i32 tensor. */
  readonly integers?: Int32Array;
  /** Of an f32 tensor. */
  readonly floats?: Float32Array;
  /** Of an f32, bf16 or f16 tensor. */
  readonly view?: FloatView;
}

function viewsOf(tensor: Tensor): Bound {
  const bytes = bytesOf(tensor);
  switch (tensor.dtype) {
    case "i32":
      return { bytes, integers: i32Of(tensor) };
    case "f32":
      return { bytes, floats: f32Of(tensor), view: new F32View(f32Of(tensor)) };
    case "bf16":
      return { bytes, view: new HalfView(u16Of(tensor), widenTable("bf16"), f32ToBf16) };
    case "f16":
      return { bytes, view: new HalfView(u16Of(tensor), widenTable("f16"), f32ToF16) };
    default:
      return { bytes };
  }
}

/** The operands of one set of kernels. A handle is used once and never again. */
export class OperandTable {
  readonly #bound: (Bound | undefined)[] = [undefined];

  bind(tensor: Tensor): Operand {
    const { rows, columns } = operandExtents(tensor);
    this.#bound.push(viewsOf(tensor));
    return { tensor, handle: this.#bound.length - 1, rows, columns };
  }

  release(operand: Operand): void {
    this.#find(operand);
    this.#bound[operand.handle] = undefined;
  }

  /** Elements of an f32 operand. */
  floats(operand: Operand): Float32Array {
    return this.#find(operand).floats ?? wrongDType(operand, "f32");
  }

  /** Elements of an i32 operand. */
  integers(operand: Operand): Int32Array {
    return this.#find(operand).integers ?? wrongDType(operand, "i32");
  }

  /** Elements of an f32, bf16 or f16 operand. */
  view(operand: Operand): FloatView {
    return this.#find(operand).view ?? wrongDType(operand, "f32, bf16 or f16");
  }

  /** Elements of an i8 operand. */
  codes(operand: Operand): Int8Array {
    if (operand.tensor.dtype !== "i8") wrongDType(operand, "i8");
    const { buffer, byteOffset, byteLength } = this.bytes(operand);
    return new Int8Array(buffer, byteOffset, byteLength);
  }

  /** Bytes of any operand. */
  bytes(operand: Operand): Uint8Array {
    return this.#find(operand).bytes;
  }

  #find(operand: Operand): Bound {
    return this.#bound[operand.handle] ?? notBound(operand);
  }
}

function notBound(operand: Operand): never {
  throw new InternalError(`expected a bound operand but ${operand.tensor.name} is not bound, or no longer`);
}

function wrongDType(operand: Operand, expected: string): never {
  throw new InternalError(`expected ${operand.tensor.name} to be ${expected} but it is ${operand.tensor.dtype}`);
}
