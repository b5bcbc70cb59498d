/** What the `gguf` package reads from the files of fixtures/. */
import { bf16ToF32, f16ToF32 } from "shardloom/plugin";
import { fixtureBytes } from "./fixture.js";

export interface Expected {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Every tensor of a file: of fixtures/formats.gguf unless told otherwise. */
export function readExpected(file: "formats" | "model" = "formats"): Expected[] {
  const index: Record<string, { dtype: string; shape: number[]; offset: number; bytes: number }> = JSON.parse(
    Buffer.from(fixtureBytes(`${file}.expected.json`)).toString(),
  );
  const values = fixtureBytes(`${file}.expected.bin`);
  return Object.entries(index).map(([name, { dtype, shape, offset, bytes }]) => ({
    name,
    dtype,
    shape,
    bytes: values.subarray(offset, offset + bytes),
  }));
}

/** The values of a tensor, row-major. */
export function valuesOf({ dtype, bytes }: Expected): Float32Array {
  // A copy: the fixture's offsets need not be multiples of an element.
  const { buffer } = Uint8Array.from(bytes);
  if (dtype === "f32") return new Float32Array(buffer);
  return Float32Array.from(new Uint16Array(buffer), dtype === "f16" ? f16ToF32 : bf16ToF32);
}
