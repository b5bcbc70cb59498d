/**
 * Where the tensors of a safetensors file that is to be written lie. Everything is known before a byte of them is computed,
 * so that several threads can write one file; only tensors whose size depends on what others hold (`deferred`) follow last,
 * and the header after them, in room that is kept for it.
 *
 * Order and header are those of safetensors' own writer (`prepare` and `serialize` in safetensors/src/tensor.rs), so that a file
 * without deferred tensors is the one that it would write, to the byte.
 */
import { type DType, dtypeBytes } from "../core/dtype.js";
import { elementCount } from "../core/tensor.js";
import { type HeaderEntry, LENGTH_BYTES } from "./safetensors-header.js";

/** A tensor to be written. */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface FileLayout {
  /** Tensors with a place of their own. */
  readonly entries: readonly HeaderEntry[];
  /** Position in the file of the first byte of the data. */
  readonly dataStart: number;
  /** Bytes of the data before the deferred tensors. */
  readonly dataBytes: number;
}

/** The tensors of highest alignment first, as safetensors orders them; by name among those of one dtype. */
const DTYPE_ORDER: readonly DType[] = ["i64", "f32", "i32", "bf16", "f16", "f8_e4m3", "i8", "u8"];

/** As transformers demands. */
const METADATA = { format: "pt" };

/** `deferred` have the largest shape that they may come to have. */
export function layOutFile(tensors: readonly TensorSpec[], deferred: readonly TensorSpec[]): FileLayout {
  const entries = placed(inFileOrder(tensors), 0);
  const dataBytes = entries.at(-1)?.end ?? 0;
  // Smaller numbers have no more digits: the header will not be longer than it would be at most.
  const longest = headerText([...entries, ...placed(inFileOrder(deferred), dataBytes)]);
  return { entries, dataStart: LENGTH_BYTES + aligned(Buffer.byteLength(longest)), dataBytes };
}

/** Places of the deferred tensors, once their shapes are known. */
export function layOutDeferred({ dataBytes }: FileLayout, deferred: readonly TensorSpec[]): readonly HeaderEntry[] {
  return placed(inFileOrder(deferred), dataBytes);
}

/** The bytes before the data: the length of the header, and the header, filled up with spaces. */
export function formatHeader({ entries, dataStart }: FileLayout, deferred: readonly HeaderEntry[]): Uint8Array {
  const bytes = Buffer.alloc(dataStart, " ");
  bytes.writeBigUInt64LE(BigInt(dataStart - LENGTH_BYTES));
  bytes.write(headerText([...entries, ...deferred]), LENGTH_BYTES);
  return bytes;
}

function inFileOrder(tensors: readonly TensorSpec[]): readonly TensorSpec[] {
  const keys = new Map(tensors.map((tensor) => [tensor, Buffer.from(tensor.name)]));
  const none = Buffer.alloc(0);
  return tensors.toSorted((a, b) => {
    const dtypes = DTYPE_ORDER.indexOf(a.dtype) - DTYPE_ORDER.indexOf(b.dtype);
    return dtypes || Buffer.compare(keys.get(a) ?? none, keys.get(b) ?? none);
  });
}

function placed(tensors: readonly TensorSpec[], start: number): readonly HeaderEntry[] {
  let end = start;
  return tensors.map(({ name, dtype, shape }) => {
    const begin = end;
    end += elementCount(shape) * dtypeBytes(dtype);
    return { name, dtype, shape, begin, end };
  });
}

function headerText(entries: readonly HeaderEntry[]): string {
  const members = entries.map(({ name, dtype, shape, begin, end }) => {
    return [name, { dtype: dtype.toUpperCase(), shape, data_offsets: [begin, end] }] as const;
  });
  // Written key by key: an object would put keys that are whole numbers first.
  return `{${[["__metadata__", METADATA] as const, ...members]
    .map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`)
    .join(",")}}`;
}

/** As safetensors pads its headers. */
function aligned(sizeBytes: number): number {
  return Math.ceil(sizeBytes / 8) * 8;
}
