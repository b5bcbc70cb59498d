/** What a block format is: how its blocks come apart into integers, and into what turns integers into values. */
import { type BlockLayout, f16ToF32, splitBlocks } from "shardloom/plugin";

/**
 * Scales or minimums, one for each run of `scaleElements`: the bits of binary16 numbers as the file has them, or binary32
 * numbers that were computed. BlockFormat says which.
 */
export type BlockValues = Uint16Array | Float32Array;

/** Where the contents of unpacked blocks go, element after element. */
export interface Unpacked {
  /** Of "code4": two elements a byte, the first in the high half. Of "int8": a signed byte each. */
  readonly codes: Uint8Array;
  readonly scales: BlockValues;
  /** Left alone by formats without minimums. */
  readonly minimums: BlockValues;
}

/** Unpacks `count` blocks at the start of `source` to the start of the arrays of `to`. */
export type Unpack = (source: Uint8Array, count: number, to: Unpacked) => void;

/**
 * A format whose elements are `(code - zero) * scale + minimum`. In all formats here the product is exact in binary32 (a
 * scale has 18 significant bits at most, a code 6 beside it or 8 beside one of 11), so there is one rounding, of the sum,
 * and none without a minimum: whatever the order of operations, the value is that of the `gguf` package.
 */
export interface BlockFormat {
  /** The execution format that holds its codes as they are: 4 bits each, or 8. */
  readonly execution: "code4" | "int8";
  /** The unsigned code of the value 0; 0 where codes are signed already. */
  readonly zero: number;
  /** Elements that a scale holds for; divides a block. */
  readonly scaleElements: number;
  readonly hasMinimums: boolean;
  /** dtype of scales and minimums: f16 where they are in the file. */
  readonly valueDType: "f16" | "f32";
  readonly unpack: Unpack;
}

/** Writes the values of the first `count` elements of unpacked blocks. */
export function writeValues(format: BlockFormat, from: Unpacked, count: number, values: Float32Array): void {
  const { execution, zero, scaleElements, hasMinimums, valueDType } = format;
  const { codes } = from;
  const widen = valueDType === "f16" ? halfTable() : null;
  for (let element = 0, run = 0; element < count; run++) {
    const [storedScale = 0, storedMinimum = 0] = [from.scales[run], from.minimums[run]];
    const scale = widen === null ? storedScale : (widen[storedScale] ?? 0);
    const minimum = widen === null ? storedMinimum : (widen[storedMinimum] ?? 0);
    for (const end = element + scaleElements; element < end; element++) {
      const code =
        execution === "int8"
          ? ((codes[element] ?? 0) << 24) >> 24
          : (((codes[element >> 1] ?? 0) >> ((~element & 1) << 2)) & 15) - zero;
      // Adding a minimum of 0 would turn -0 into 0.
      values[element] = hasMinimums ? code * scale + minimum : code * scale;
    }
  }
}

let halves: Float32Array | undefined;

/** The values of all 65,536 binary16 bit patterns. */
function halfTable(): Float32Array {
  if (halves === undefined) {
    halves = new Float32Array(65_536);
    for (let bits = 0; bits < halves.length; bits++) halves[bits] = f16ToF32(bits);
  }
  return halves;
}

/** The binary16 value at byte `at`. */
export function halfAt(source: Uint8Array, at: number): number {
  return halfTable()[halfBitsAt(source, at)] ?? 0;
}

/** The bits of that value. */
export function halfBitsAt(source: Uint8Array, at: number): number {
  return (source[at] ?? 0) | ((source[at + 1] ?? 0) << 8);
}

/** A format whose blocks the reader itself can take apart: what is beside the codes is turned into scales here. */
export interface LaidOutFormat extends BlockFormat {
  readonly layout: BlockLayout;
  readonly readHeaders: ReadHeaders;
  /** Whether the headers are the scales, as they are kept, and nothing else. */
  readonly headersAreScales: boolean;
}

/** Writes the scales and minimums of `count` blocks, whose headers lie one after another. */
export type ReadHeaders = (headers: Uint8Array, count: number, scales: BlockValues, minimums: BlockValues) => void;

/** The format of blocks of a layout. */
export function laidOut(
  described: Omit<BlockFormat, "unpack">,
  layout: BlockLayout,
  readHeaders: ReadHeaders,
): LaidOutFormat {
  let headers = new Uint8Array(0);
  const unpack: Unpack = (source, count, { codes, scales, minimums }) => {
    const needed = count * layout.headerBytes;
    if (headers.length < needed) headers = new Uint8Array(needed);
    splitBlocks(layout, source, count, { codes, headers });
    readHeaders(headers, count, scales, minimums);
  };
  const headersAreScales = layout.headerBytes === 2 && described.valueDType === "f16" && !described.hasMinimums;
  return { ...described, unpack, layout, readHeaders, headersAreScales };
}

export function isLaidOut(format: BlockFormat): format is LaidOutFormat {
  return "layout" in format;
}
