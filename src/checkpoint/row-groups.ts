/**
 * Matrices of codes whose rows lie in groups of sixteen, the order in which native kernels multiply them
 * (native/kernels/arranged_layout.h): a group has four bytes of each of its rows, then the next four of each. Rows after the
 * last whole group lie one after another. A group takes the bytes that its rows take in the order of rows.
 */
import type { CheckpointTensor } from "./checkpoint.js";
import { checkSlice, readSlice, type SliceRange } from "./slice.js";

/** Rows of a group. */
const GROUP_ROWS = 16;
/** Bytes that a row has together in a group. */
const UNIT_ROW_BYTES = 4;

export interface RowGroups {
  /** All rows. */
  readonly matrix: Uint8Array;
  /** A multiple of four. */
  readonly rowBytes: number;
  /**
   * 8: a byte an input. 4: two inputs a byte. In the order of rows neighbours, the first in the high half; in a group, of each
   * eight the first four in the low halves and the last four in the high ones.
   */
  readonly codeBits: 4 | 8;
  /**
   * Where the scales of all rows belong, in the order of rows, and will be read to after the codes. Who finds them beside codes
   * may put those of the same rows there at once, to have nothing to copy then.
   */
  readonly scales?: { readonly matrix: Uint8Array; readonly rowBytes: number };
}

/** Reads a slice of whole rows to row `firstRow` of a matrix and the rows after it. Throws as `readSlice` does. */
export function readRowGroups(
  tensor: CheckpointTensor,
  ranges: readonly SliceRange[],
  groups: RowGroups,
  firstRow: number,
): void {
  const [rows = { start: 0, end: 0 }] = ranges;
  const sizeBytes = (rows.end - rows.start) * groups.rowBytes;
  checkSlice(tensor, ranges, sizeBytes);
  if (tensor.readRowGroups?.(ranges, groups, firstRow) === true) return;
  const read = new Uint8Array(sizeBytes);
  readSlice(tensor, ranges, read);
  placeRows(read, groups, firstRow);
}

/** Puts rows that lie one after another where they belong: row `firstRow` of the matrix, and the rows after it. */
export function placeRows(rows: Uint8Array, { matrix, rowBytes, codeBits }: RowGroups, firstRow: number): void {
  const wholeRows = Math.floor(matrix.length / rowBytes / GROUP_ROWS) * GROUP_ROWS;
  const [source, target] = [viewOf(rows), viewOf(matrix)];
  for (let at = 0, row = firstRow; at < rows.length; at += rowBytes, row++) {
    if (row >= wholeRows) {
      matrix.set(rows.subarray(at), row * rowBytes);
      return;
    }
    const inGroup = row % GROUP_ROWS;
    let to = (row - inGroup) * rowBytes + inGroup * UNIT_ROW_BYTES;
    for (let from = at; from < at + rowBytes; from += UNIT_ROW_BYTES, to += GROUP_ROWS * UNIT_ROW_BYTES) {
      const stored = source.getUint32(from, true);
      target.setUint32(to, codeBits === 8 ? stored : halvesOf(stored), true);
    }
  }
}

function viewOf({ buffer, byteOffset, byteLength }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset, byteLength);
}

/** Eight neighbours, the first of each two in the high half, as the first four in low halves and the last four in high ones. */
function halvesOf(neighbours: number): number {
  const low = bytesOfPairs((neighbours >>> 4) & 0x0f0f0f0f);
  const high = bytesOfPairs(neighbours & 0x0f0f0f0f);
  return low | (high << 8);
}

/** Codes a, b, c, d in the low halves of four bytes become `a | c << 4` in the first byte and `b | d << 4` in the third. */
function bytesOfPairs(codes: number): number {
  const pairs = (codes | (codes >>> 12)) & 0xffff;
  return (pairs | (pairs << 8)) & 0x00ff00ff;
}
