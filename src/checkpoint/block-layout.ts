/**
 * Blocks of codes as quantized files have them: each begins or ends with a few bytes of its own (scales), and the codes of
 * its elements lie in groups. Taken apart here into codes as execution formats have them, and the bytes beside them. What
 * the addon does while it reads (native/file_binding.cc), in TypeScript.
 */
import type { RowGroups } from "./row-groups.js";

export interface BlockLayout {
  readonly blockBytes: number;
  /** First byte of the codes in a block. */
  readonly codesOffset: number;
  /** Bytes of codes: `groups` groups of `groupBytes`, one after another. */
  readonly groups: number;
  readonly groupBytes: number;
  /**
   * 8: a byte an element, as it is. 4: byte i of a group of n holds element i in its low half and element n + i in its high
   * half; they become two neighbours a byte, the first in the high half. n is even.
   */
  readonly codeBits: 4 | 8;
  /** Bytes of a block that are kept beside its codes. */
  readonly headerOffset: number;
  readonly headerBytes: number;
}

/** Runs of blocks at equal distances in a file. */
export interface BlockRuns {
  /** First byte of the first run. */
  readonly position: number;
  /** Blocks of a run, one after another. */
  readonly blocks: number;
  /** Bytes from the beginning of a run to that of the next. */
  readonly stride: number;
  readonly runs: number;
}

/** Where the parts of blocks go, block after block. */
export interface SplitBlocks {
  /** `groups * groupBytes` a block. */
  readonly codes: Uint8Array;
  /** `headerBytes` a block. */
  readonly headers: Uint8Array;
}

/** Where the parts of the blocks of whole rows go, row after row: codes to the rows of a matrix in groups. */
export interface GroupedBlocks {
  readonly groups: RowGroups;
  readonly firstRow: number;
  /** Blocks of a row. */
  readonly rowBlocks: number;
  /** `headerBytes` a block. */
  readonly headers: Uint8Array;
}

/** Bytes of a block's codes. */
export const codeBytes = ({ groups, groupBytes }: BlockLayout): number => groups * groupBytes;

/** Takes `count` blocks at the start of `source` apart, to the start of the arrays of `to`. */
export function splitBlocks(layout: BlockLayout, source: Uint8Array, count: number, to: SplitBlocks): void {
  const { blockBytes, codesOffset, groups, groupBytes, codeBits, headerOffset, headerBytes } = layout;
  const stored = codeBytes(layout);
  for (let block = 0; block < count; block++) {
    const at = block * blockBytes;
    const header = at + headerOffset;
    to.headers.set(source.subarray(header, header + headerBytes), block * headerBytes);
    const first = at + codesOffset;
    if (codeBits === 8) {
      to.codes.set(source.subarray(first, first + stored), block * stored);
      continue;
    }
    for (let group = 0; group < groups; group++) {
      packNeighbours(source, first + group * groupBytes, groupBytes, to.codes, block * stored + group * groupBytes);
    }
  }
}

/**
 * Packs `count` bytes that hold element i in the low half and element `count` + i in the high half into as many bytes that
 * hold neighbours, at `codes[to]`.
 */
function packNeighbours(source: Uint8Array, at: number, count: number, codes: Uint8Array, to: number): void {
  const half = count / 2;
  for (let i = 0; i < half; i++) {
    const first = source[at + 2 * i] ?? 0;
    const second = source[at + 2 * i + 1] ?? 0;
    codes[to + i] = ((first & 15) << 4) | (second & 15);
    codes[to + half + i] = (first & 0xf0) | (second >> 4);
  }
}
