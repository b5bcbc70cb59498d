import { type CheckpointTensor, type FloatDType, widenTable } from "shardloom/plugin";

/** Reads elements of a floating-point tensor as f32, exactly, into memory that is reused from call to call. */
export class ElementReader {
  readonly #tensor: CheckpointTensor;
  readonly #dtype: FloatDType;
  #bytes = new Uint8Array(0);
  #values = new Float32Array(0);

  constructor(tensor: CheckpointTensor, dtype: FloatDType) {
    this.#tensor = tensor;
    this.#dtype = dtype;
  }

  /** `count` elements from `first` on; the caller may change them. Valid until the next call. */
  read(first: number, count: number): Float32Array {
    if (this.#values.length < count) this.#values = new Float32Array(count);
    const values = this.#values.subarray(0, count);
    if (this.#dtype === "f32") {
      this.#tensor.read(new Uint8Array(values.buffer, 0, count * 4), first * 4);
      return values;
    }
    if (this.#bytes.length < count * 2) this.#bytes = new Uint8Array(count * 2);
    this.#tensor.read(this.#bytes.subarray(0, count * 2), first * 2);
    widen(new Uint16Array(this.#bytes.buffer, 0, count), this.#dtype, values);
    return values;
  }

  /** Gives the memory back. */
  release(): void {
    this.#bytes = new Uint8Array(0);
    this.#values = new Float32Array(0);
  }
}

function widen(patterns: Uint16Array, dtype: "bf16" | "f16", values: Float32Array): void {
  if (dtype === "bf16") {
    // bfloat16 is the upper half of binary32.
    const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
    for (let i = 0; i < patterns.length; i++) bits[i] = (patterns[i] ?? 0) << 16;
    return;
  }
  const table = widenTable("f16");
  for (let i = 0; i < patterns.length; i++) values[i] = table[patterns[i] ?? 0] ?? 0;
}
