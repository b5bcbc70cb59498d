import assert from "node:assert/strict";
import fc from "fast-check";
import { type Box, boxSize, cellsOf } from "../../src/parallel/coverage.js";

const range = (extent: number) =>
  fc.tuple(fc.nat(extent), fc.nat(extent)).map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) }));

/** Every index of a shape, in row-major order. */
function indices(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>(
    (all, extent) => all.flatMap((index) => Array.from({ length: extent }, (_, i) => [...index, i])),
    [[]],
  );
}

function holds(box: Box, index: readonly number[]): boolean {
  return box.every(({ start, end }, dim) => {
    const at = index[dim] ?? -1;
    return start <= at && at < end;
  });
}

describe("cells of a tensor", () => {
  it("tile it, and each lies in exactly the boxes it says", () => {
    const cases = fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 3 }).chain((shape) => {
      const box = fc.tuple(...shape.map(range));
      return fc.record({ shape: fc.constant(shape), boxes: fc.array(box, { maxLength: 5 }) });
    });
    fc.assert(
      fc.property(cases, ({ shape, boxes }) => {
        const cells = cellsOf(shape, boxes);
        for (const index of indices(shape)) {
          const owning = cells.filter(({ box }) => holds(box, index));
          assert.equal(owning.length, 1, `index ${index}`);
          const expected = boxes.flatMap((box, i) => (holds(box, index) ? [i] : []));
          assert.deepEqual(owning[0]?.owners, expected, `index ${index}`);
        }
        const sum = cells.reduce((total, { box }) => total + boxSize(box), 0);
        assert.equal(
          sum,
          shape.reduce((product, extent) => product * extent, 1),
        );
      }),
    );
  });

  it("come in the order of their first elements", () => {
    const halves = [
      [
        { start: 2, end: 4 },
        { start: 0, end: 3 },
      ],
      [
        { start: 0, end: 2 },
        { start: 0, end: 3 },
      ],
    ];
    assert.deepEqual(cellsOf([4, 3], halves), [
      {
        box: [
          { start: 0, end: 2 },
          { start: 0, end: 3 },
        ],
        owners: [1],
      },
      {
        box: [
          { start: 2, end: 4 },
          { start: 0, end: 3 },
        ],
        owners: [0],
      },
    ]);
  });

  it("are one for a scalar, and none for a tensor without elements", () => {
    assert.deepEqual(cellsOf([], [[], []]), [{ box: [], owners: [0, 1] }]);
    assert.deepEqual(cellsOf([0, 3], []), []);
  });
});
