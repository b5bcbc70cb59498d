/** Which parts of a tensor are held how often: boxes cut into cells that no box boundary crosses. */
import type { Range } from "./partition.js";

/** Indices of a tensor, one range a dimension; empty for a scalar. */
export type Box = readonly Range[];

export interface Cell {
  readonly box: Box;
  /** Indices of the boxes that contain it, ascending. */
  readonly owners: readonly number[];
}

/** Elements of a box. */
export function boxSize(box: Box): number {
  return box.reduce((product, { start, end }) => product * (end - start), 1);
}

/**
 * Cuts a tensor of `shape` along all boundaries of `boxes`, which must lie within it. The cells tile the tensor; they
 * come in row-major order of their first elements. Cells of no elements are left out.
 */
export function cellsOf(shape: readonly number[], boxes: readonly Box[]): readonly Cell[] {
  let cells: Cell[] = [{ box: [], owners: boxes.map((_, index) => index) }];
  shape.forEach((extent, dim) => {
    const cuts = intervals(extent, boxes, dim);
    const [whole] = cuts;
    if (whole !== undefined && cuts.length === 1 && boxes.every((box) => holds(box, dim, whole))) {
      cells = cells.map(({ box, owners }) => ({ box: [...box, whole], owners }));
      return;
    }
    cells = cells.flatMap(({ box, owners }) => {
      return cuts.map((cut) => ({
        box: [...box, cut],
        owners: owners.filter((owner) => holds(boxes[owner], dim, cut)),
      }));
    });
  });
  return cells;
}

/** `[0, extent)` cut at every boundary of the boxes in one dimension. */
function intervals(extent: number, boxes: readonly Box[], dim: number): readonly Range[] {
  const bounds = new Set([0, extent]);
  for (const box of boxes) {
    const range = box[dim];
    if (range === undefined) continue;
    bounds.add(range.start);
    bounds.add(range.end);
  }
  const sorted = [...bounds].sort((a, b) => a - b);
  return sorted.slice(1).map((end, i) => ({ start: sorted[i] ?? 0, end }));
}

function holds(box: Box | undefined, dim: number, cut: Range): boolean {
  const range = box?.[dim];
  return range !== undefined && range.start <= cut.start && cut.end <= range.end;
}
