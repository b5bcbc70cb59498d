/**
 * Matrices whose columns are cut inside blocks: the ranks on both sides of a cut need all of its blocks. All ranks together
 * take the rows apart once, whoever comes first, and each copies its columns from there.
 */
import {
  type CheckpointTensor,
  dtypeBytes,
  InternalError,
  type LinearLayer,
  type ReadGroup,
  type SharedItem,
  type SharedPiece,
} from "shardloom/plugin";

/** Bytes of a piece, about: of some whole rows. */
const PIECE_BYTES = 1024 * 1024;

/** Whether a rank's inputs begin or end inside a block of `blockElements`, on any rank. */
export function isCutInBlocks({ inputSplit = [] }: LinearLayer, blockElements: number): boolean {
  return inputSplit.some(({ start, end }) => start % blockElements !== 0 || end % blockElements !== 0);
}

/** Lets one matrix at a time hold pieces: matrices are loaded one after another. */
export class PieceSlot {
  #holder: SharedPlanes | null = null;

  enter(holder: SharedPlanes): void {
    if (this.#holder !== holder) this.#holder?.release();
    this.#holder = holder;
  }
}

/** Planes of one matrix, all with the same rows. */
export class SharedPlanes {
  readonly #planes: readonly CheckpointTensor[];
  readonly #group: ReadGroup;
  readonly #slot: PieceSlot;
  readonly #rows: number;
  /** Rows of a piece; the last one may have fewer. */
  readonly #pieceRows: number;
  #pieces: readonly SharedPiece[] | null = null;

  constructor(planes: readonly CheckpointTensor[], group: ReadGroup, slot: PieceSlot) {
    this.#planes = planes;
    this.#group = group;
    this.#slot = slot;
    this.#rows = planes[0]?.shape[0] ?? 0;
    const rowBytes = planes.reduce((sum, plane) => sum + bytesOfRow(plane), 0);
    this.#pieceRows = Math.max(1, Math.floor(PIECE_BYTES / Math.max(1, rowBytes)));
  }

  /** The same planes, read from what is shared. */
  get tensors(): readonly CheckpointTensor[] {
    return this.#planes.map((plane) => ({
      ...plane,
      read: (destination, byteOffset) => this.#read(plane, destination, byteOffset),
      readSlice: ([row, column], destination) => {
        if (row === undefined || column === undefined) throw new InternalError(`${plane.name} is a matrix`);
        const [width, rowBytes] = [dtypeBytes(plane.dtype), bytesOfRow(plane)];
        const count = (column.end - column.start) * width;
        for (let r = row.start, at = 0; r < row.end; r++, at += count) {
          this.#read(plane, destination.subarray(at, at + count), r * rowBytes + column.start * width);
        }
      },
    }));
  }

  release(): void {
    for (const piece of this.#pieces ?? []) piece.release();
    this.#pieces = null;
  }

  #read(plane: CheckpointTensor, destination: Uint8Array, byteOffset: number): void {
    this.#slot.enter(this);
    this.#pieces ??= this.#group.reads.acquire(this.#items(), this.#group.worldSize);
    const pieceBytes = this.#pieceRows * bytesOfRow(plane);
    const end = byteOffset + destination.length;
    for (let at = byteOffset; at < end; ) {
      const piece = Math.floor(at / pieceBytes);
      const stop = Math.min(end, (piece + 1) * pieceBytes);
      const base = this.#offsetOf(plane, piece) - piece * pieceBytes;
      const bytes = this.#pieces[piece]?.bytes.subarray(base + at, base + stop);
      if (bytes?.length !== stop - at) throw new RangeError(`${plane.name}: bytes ${at} to ${stop} are outside of it`);
      destination.set(bytes, at - byteOffset);
      at = stop;
    }
  }

  #items(): readonly SharedItem[] {
    const name = this.#planes[0]?.name ?? "";
    return Array.from({ length: Math.ceil(this.#rows / this.#pieceRows) }, (_, piece) => {
      const start = piece * this.#pieceRows;
      const rows = this.#rowsIn(piece);
      return {
        key: `${name} and what goes with it, ${this.#planes.map(({ shape }) => shape.join()).join(" ")}, rows from ${start}`,
        sizeBytes: this.#planes.reduce((sum, plane) => sum + rows * bytesOfRow(plane), 0),
        fill: (bytes: Uint8Array) => {
          for (const plane of this.#planes) {
            const at = this.#offsetOf(plane, piece);
            readRows(plane, start, rows, bytes.subarray(at, at + rows * bytesOfRow(plane)));
          }
        },
      };
    });
  }

  #rowsIn(piece: number): number {
    return Math.min(this.#pieceRows, this.#rows - piece * this.#pieceRows);
  }

  /** Where the rows of a plane begin in a piece: planes lie one after another. */
  #offsetOf(plane: CheckpointTensor, piece: number): number {
    const before = this.#planes.slice(0, this.#planes.indexOf(plane));
    return before.reduce((sum, each) => sum + this.#rowsIn(piece) * bytesOfRow(each), 0);
  }
}

function bytesOfRow({ dtype, shape }: CheckpointTensor): number {
  return (shape[1] ?? 1) * dtypeBytes(dtype);
}

function readRows(plane: CheckpointTensor, start: number, rows: number, destination: Uint8Array): void {
  const ranges = [
    { start, end: start + rows },
    { start: 0, end: plane.shape[1] ?? 0 },
  ];
  if (plane.readSlice !== undefined) plane.readSlice(ranges, destination);
  else plane.read(destination, start * bytesOfRow(plane));
}
