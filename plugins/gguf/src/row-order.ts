/** Puts rows back into the order that models are published with, while they are read. */
import { InternalError } from "shardloom/plugin";

/** Copies bytes `[byteOffset, byteOffset + destination.length)` of a row-major matrix. */
export type ReadBytes = (destination: Uint8Array, byteOffset: number) => void;

/** Rows of a matrix, as bytes. */
export interface Rows {
  readonly rows: number;
  readonly rowBytes: number;
}

/** Largest head that is gathered in memory to restore the order of its rows; larger ones are read row by row. */
const MAX_HEAD_BYTES = 8 * 1024 * 1024;

/**
 * Reads in the published order a matrix that `read` reads in the order of the file, which has the two rows of each rotary
 * pair side by side (0, d/2, 1, d/2 + 1, ... of a head of d rows), because llama.cpp rotates neighbours.
 */
export function unpermuted(read: ReadBytes, { rows, rowBytes }: Rows, heads: number): ReadBytes {
  const headRows = rows / heads;
  const headBytes = headRows * rowBytes;
  if (!Number.isInteger(headRows) || headRows % 2 !== 0) {
    throw new InternalError(`${rows} rows are not ${heads} heads of pairs`);
  }
  return (destination, byteOffset) => {
    let gathered: Uint8Array | undefined;
    for (let done = 0; done < destination.length; ) {
      const at = byteOffset + done;
      const head = Math.floor(at / headBytes);
      const inHead = at - head * headBytes;
      const left = destination.length - done;
      if (inHead === 0 && left >= headBytes && headBytes <= MAX_HEAD_BYTES) {
        gathered ??= new Uint8Array(headBytes);
        read(gathered, head * headBytes);
        for (let row = 0; row < headRows; row++) {
          const from = storedRow(row, headRows) * rowBytes;
          destination.set(gathered.subarray(from, from + rowBytes), done + row * rowBytes);
        }
        done += headBytes;
      } else {
        const row = Math.floor(inHead / rowBytes);
        const inRow = inHead - row * rowBytes;
        const count = Math.min(left, rowBytes - inRow);
        const stored = head * headRows + storedRow(row, headRows);
        read(destination.subarray(done, done + count), stored * rowBytes + inRow);
        done += count;
      }
    }
  };
}

/** Rows at equal distances in the file that are neighbours as they are published, from row `to` on. */
export interface RowRun {
  readonly first: number;
  readonly stride: number;
  readonly runs: number;
  readonly to: number;
}

/** The published rows `start` to `end` of a matrix of `rows`, as runs in the file: of each half of a head, every other row. */
export function rowsInFile(
  { start, end }: { readonly start: number; readonly end: number },
  rows: number,
  heads: number | null,
): readonly RowRun[] {
  if (heads === null) return [{ first: start, stride: 1, runs: end - start, to: start }];
  const headRows = rows / heads;
  const pairs = headRows / 2;
  const runs: RowRun[] = [];
  for (let row = start; row < end; ) {
    const head = Math.floor(row / headRows);
    const inHead = row - head * headRows;
    const halfEnd = head * headRows + (inHead < pairs ? pairs : headRows);
    const count = Math.min(end, halfEnd) - row;
    runs.push({ first: head * headRows + storedRow(inHead, headRows), stride: 2, runs: count, to: row });
    row += count;
  }
  return runs;
}

/** Where row `row` of a published head lies among the `headRows` rows of the file's head. */
function storedRow(row: number, headRows: number): number {
  const pairs = headRows / 2;
  return row < pairs ? row * 2 : (row - pairs) * 2 + 1;
}
