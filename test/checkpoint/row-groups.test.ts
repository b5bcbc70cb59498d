import assert from "node:assert/strict";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { placeRows, type RowGroups, readRowGroups } from "../../src/checkpoint/row-groups.js";
import { checkpointError } from "./files.js";

const [ROWS, COLUMNS] = [20, 8];
const bytes = Uint8Array.from({ length: ROWS * COLUMNS }, (_, i) => i);

/** A matrix of codes in memory; `groups`: that tells how many times it was read in groups, and reads nothing. */
function codes(groups?: { calls: number; readonly isRead: boolean }): CheckpointTensor {
  const read: CheckpointTensor["read"] = (destination, at) =>
    destination.set(bytes.subarray(at, at + destination.length));
  const tensor: CheckpointTensor = { name: "w.codes", dtype: "i8", shape: [ROWS, COLUMNS], file: "memory", read };
  if (groups === undefined) return tensor;
  const readGroups = (): boolean => {
    groups.calls++;
    return groups.isRead;
  };
  return { ...tensor, readRowGroups: readGroups };
}

const all = { start: 0, end: COLUMNS };
const matrixOf = (rowBytes: number): RowGroups => ({ matrix: new Uint8Array(64 * rowBytes), rowBytes, codeBits: 8 });

describe("rows read to groups", () => {
  it("are what their rows are, one by one, of a tensor that knows no groups and of one that cannot read them so", () => {
    const expected = matrixOf(COLUMNS);
    placeRows(bytes.subarray(3 * COLUMNS, 19 * COLUMNS), expected, 5);
    const unable = { calls: 0, isRead: false };
    for (const tensor of [codes(), codes(unable)]) {
      const groups = matrixOf(COLUMNS);
      readRowGroups(tensor, [{ start: 3, end: 19 }, all], groups, 5);
      assert.deepEqual(groups, expected);
    }
    assert.equal(unable.calls, 1);
  });

  it("are asked of a tensor only where it has them, in rows of that size", () => {
    const able = { calls: 0, isRead: true };
    for (const tensor of [codes(), codes(able)]) {
      for (const ranges of [[{ start: 8, end: ROWS + 1 }, all], [{ start: 8, end: 4 }, all], [all]]) {
        const read = (): void => readRowGroups(tensor, ranges, matrixOf(COLUMNS), 0);
        assert.throws(read, checkpointError("SLICE_OUT_OF_BOUNDS", /w\.codes/));
      }
      const wider = (): void => readRowGroups(tensor, [{ start: 0, end: 4 }, all], matrixOf(COLUMNS + 4), 0);
      assert.throws(wider, checkpointError("SLICE_SIZE_MISMATCH", /w\.codes/));
    }
    assert.equal(able.calls, 0);
    readRowGroups(codes(able), [{ start: 0, end: ROWS }, all], matrixOf(COLUMNS), 0);
    assert.equal(able.calls, 1);
  });
});
