/**
 * Writes GGUF files of any size: the header at once, the tensors' data as it is made.
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
import { closeSync, openSync, writeSync } from "node:fs";

/** A value of the metadata. Numbers say which of ggml's types they are. */
export type GgufValue =
  | { readonly type: "u32" | "i32" | "f32"; readonly value: number }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "strings"; readonly values: readonly string[] }
  | { readonly type: "i32s"; readonly values: readonly number[] };

export interface GgufTensor {
  readonly name: string;
  /** Fastest first: `[inputs, outputs]` of a matrix. */
  readonly dimensions: readonly number[];
  /** Number in `enum ggml_type`. */
  readonly ggmlType: number;
  readonly bytes: number;
  /** The data in pieces; together they have `bytes`. */
  readonly data: () => Iterable<Uint8Array>;
}

const ALIGNMENT = 32;
const VERSION = 3;
/** Numbers of the value types. */
const U32 = 4;
const I32 = 5;
const F32 = 6;
const BOOL = 7;
const STRING = 8;
const ARRAY = 9;

const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** Writes a file. Throws an Error when a tensor's pieces have not its size, and what the file system throws. */
export function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): void {
  const file = openSync(path, "w");
  try {
    let position = writeAll(file, headerBytes(metadata, tensors), 0);
    const start = aligned(position);
    let offset = 0;
    for (const tensor of tensors) {
      position = start + offset;
      for (const piece of tensor.data()) position = writeAll(file, piece, position);
      const written = position - start - offset;
      if (written !== tensor.bytes) {
        throw new Error(`${path}: expected ${tensor.bytes} bytes of ${tensor.name} but received ${written}`);
      }
      offset += aligned(tensor.bytes);
    }
    // The last tensor is padded as well: readers check the size of the whole section.
    const padding = start + offset - position;
    if (padding > 0) writeAll(file, new Uint8Array(padding), position);
  } finally {
    closeSync(file);
  }
}

function writeAll(file: number, bytes: Uint8Array, position: number): number {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(file, bytes, done, bytes.length - done, position + done);
  }
  return position + bytes.length;
}

function headerBytes(metadata: ReadonlyMap<string, GgufValue>, tensors: readonly GgufTensor[]): Uint8Array {
  const parts = [Buffer.from("GGUF", "latin1"), u32(VERSION), u64(tensors.length), u64(metadata.size)];
  for (const [key, value] of metadata) parts.push(string(key), valueBytes(value));
  let offset = 0;
  for (const { name, dimensions, ggmlType, bytes } of tensors) {
    parts.push(string(name), u32(dimensions.length), ...dimensions.map(u64), u32(ggmlType), u64(offset));
    offset += aligned(bytes);
  }
  return Buffer.concat(parts);
}

function valueBytes(value: GgufValue): Buffer {
  switch (value.type) {
    case "u32":
      return Buffer.concat([u32(U32), u32(value.value)]);
    case "i32":
      return Buffer.concat([u32(I32), i32(value.value)]);
    case "f32":
      return Buffer.concat([u32(F32), f32(value.value)]);
    case "bool":
      return Buffer.concat([u32(BOOL), Buffer.of(value.value ? 1 : 0)]);
    case "string":
      return Buffer.concat([u32(STRING), string(value.value)]);
    case "strings":
      return Buffer.concat([u32(ARRAY), u32(STRING), u64(value.values.length), ...value.values.map(string)]);
    case "i32s":
      return Buffer.concat([u32(ARRAY), u32(I32), u64(value.values.length), ...value.values.map(i32)]);
  }
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function i32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}

function f32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function string(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([u64(bytes.length), bytes]);
}
