/** Writes GGUF files for tests: valid ones, and ones that lie wherever they are told to. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Numbers of the value types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
export const U8 = 0;
export const U32 = 4;
export const I32 = 5;
export const F32 = 6;
export const BOOL = 7;
export const STRING = 8;
export const ARRAY = 9;
export const U64 = 10;
export const F64 = 12;

/** Bytes of a header, one field after another. */
export class Bytes {
  readonly #parts: Buffer[] = [];

  u8(value: number): this {
    return this.raw(Buffer.from([value]));
  }

  u32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32LE(value);
    return this.raw(part);
  }

  i32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeInt32LE(value);
    return this.raw(part);
  }

  f32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeFloatLE(value);
    return this.raw(part);
  }

  u64(value: number | bigint): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64LE(BigInt(value));
    return this.raw(part);
  }

  string(value: string): this {
    const text = Buffer.from(value);
    return this.u64(text.length).raw(text);
  }

  raw(part: Uint8Array): this {
    this.#parts.push(Buffer.from(part));
    return this;
  }

  get length(): number {
    return this.#parts.reduce((sum, part) => sum + part.length, 0);
  }

  done(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

export interface TensorFields {
  readonly name: string;
  /** Fastest first. */
  readonly dimensions: readonly (number | bigint)[];
  readonly type: number;
  readonly offset: number | bigint;
}

export interface FileFields {
  readonly magic?: string;
  readonly version?: number;
  readonly tensorCount?: number | bigint;
  readonly pairCount?: number | bigint;
  /** Key and what follows it: type and value. */
  readonly pairs?: readonly (readonly [string, Bytes])[];
  readonly tensors?: readonly TensorFields[];
  readonly alignment?: number;
  readonly data?: Uint8Array;
}

export const u8 = (value: number): Bytes => new Bytes().u32(U8).u8(value);
export const u32 = (value: number): Bytes => new Bytes().u32(U32).u32(value);
export const u64 = (value: number | bigint): Bytes => new Bytes().u32(U64).u64(value);
export const f32 = (value: number): Bytes => new Bytes().u32(F32).f32(value);
export const bool = (value: boolean): Bytes => new Bytes().u32(BOOL).u8(value ? 1 : 0);
export const string = (value: string): Bytes => new Bytes().u32(STRING).string(value);

export function strings(values: readonly string[]): Bytes {
  const bytes = new Bytes().u32(ARRAY).u32(STRING).u64(values.length);
  for (const value of values) bytes.string(value);
  return bytes;
}

export function i32s(values: readonly number[]): Bytes {
  const bytes = new Bytes().u32(ARRAY).u32(I32).u64(values.length);
  for (const value of values) bytes.i32(value);
  return bytes;
}

export function f32s(values: readonly number[]): Bytes {
  const bytes = new Bytes().u32(ARRAY).u32(F32).u64(values.length);
  for (const value of values) bytes.f32(value);
  return bytes;
}

/** The hyperparameters of a small llama model, which `overrides` replaces, extends, or removes with null. */
export function llamaPairs(overrides: Readonly<Record<string, Bytes | null>> = {}): [string, Bytes][] {
  const pairs = new Map<string, Bytes>([
    ["general.architecture", string("llama")],
    ["llama.block_count", u32(1)],
    ["llama.context_length", u32(128)],
    ["llama.embedding_length", u32(32)],
    ["llama.feed_forward_length", u32(64)],
    ["llama.attention.head_count", u32(4)],
    ["llama.attention.head_count_kv", u32(2)],
    ["llama.attention.layer_norm_rms_epsilon", f32(1e-5)],
    ["llama.vocab_size", u32(10)],
  ]);
  for (const [key, value] of Object.entries(overrides)) {
    if (value === null) pairs.delete(key);
    else pairs.set(key, value);
  }
  return [...pairs];
}

/** A file of these fields; counts and magic are true unless they are given. */
export function gguf(fields: FileFields): Buffer {
  const pairs = fields.pairs ?? [];
  const tensors = fields.tensors ?? [];
  const bytes = new Bytes()
    .raw(Buffer.from(fields.magic ?? "GGUF", "latin1"))
    .u32(fields.version ?? 3)
    .u64(fields.tensorCount ?? tensors.length)
    .u64(fields.pairCount ?? pairs.length);
  for (const [key, value] of pairs) bytes.string(key).raw(value.done());
  for (const { name, dimensions, type, offset } of tensors) {
    bytes.string(name).u32(dimensions.length);
    for (const dimension of dimensions) bytes.u64(dimension);
    bytes.u32(type).u64(offset);
  }
  if (fields.data === undefined) return bytes.done();
  const alignment = fields.alignment ?? 32;
  return bytes
    .raw(Buffer.alloc((alignment - (bytes.length % alignment)) % alignment))
    .raw(fields.data)
    .done();
}

/** A folder for the files of one suite; `remove` when it is over. */
export class TestFolder {
  readonly path = mkdtempSync(join(tmpdir(), "shardloom-gguf-"));

  write(name: string, content: Uint8Array): string {
    const path = join(this.path, name);
    writeFileSync(path, content);
    return path;
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
