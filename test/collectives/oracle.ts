/** What collectives must leave behind, worked out from the definitions alone. */
import { bf16ToF32, bitsToF32, f32ToBf16, f32ToBits } from "../../src/core/dtype.js";
import { GATHER_MARGIN, madeUpBits, type Step, UNTOUCHED } from "./script.js";

const scratch = new DataView(new ArrayBuffer(4));

function floatBits(value: number): number {
  if (Number.isNaN(value)) return 0x7fc00000;
  scratch.setFloat32(0, value);
  return scratch.getInt32(0);
}

/** ((r0 + r1) + r2) + ... in f32, every NaN being the quiet NaN. One rank alone keeps what it has. */
export function rankOrderSum(ranks: readonly Int32Array[]): Int32Array {
  const [first, ...others] = ranks.map((bits) => new Float32Array(bits.buffer, bits.byteOffset, bits.length));
  if (first === undefined || others.length === 0) return ranks[0] ?? new Int32Array(0);
  return Int32Array.from(first, (start, i) =>
    floatBits(others.reduce((partial, each) => Math.fround(partial + (each[i] ?? 0)), start)),
  );
}

/** What another rank sees of f32 bits that travel as bf16. */
function rounded(bits: Int32Array): Int32Array {
  return bits.map((each) => f32ToBits(bf16ToF32(f32ToBf16(bitsToF32(each >>> 0)))));
}

/** The bits that every rank must hold after a step. */
export function expectedBits(step: Step, worldSize: number, payload: "f32" | "bf16" = "f32"): Int32Array {
  const ranks = Array.from({ length: worldSize }, (_, rank) => rank);
  switch (step.do) {
    case "allReduce": {
      const inputs = step.bits ?? ranks.map((rank) => madeUpBits("f32", rank, step.seed, step.count));
      const expected = new Int32Array(step.count + 1).fill(UNTOUCHED);
      expected.set(rankOrderSum(payload === "bf16" && worldSize > 1 ? inputs.map(rounded) : inputs));
      return expected;
    }
    case "allGather":
      return gatheredRows(step.rows, step.widths, (rank, columns) =>
        madeUpBits(step.type, rank, step.seed, step.rows * columns),
      );
    case "broadcast":
      return madeUpBits(step.type, step.root, step.seed, step.count);
    case "barrier":
    case "selectIsa":
      return new Int32Array(0);
    case "storm":
      return Int32Array.of(0);
  }
}

function gatheredRows(
  rows: number,
  widths: readonly number[],
  dataOf: (rank: number, columns: number) => Int32Array,
): Int32Array {
  const parts = widths.map((width, rank) => ({ width, data: dataOf(rank, width + GATHER_MARGIN) }));
  const margin = new Array<number>(GATHER_MARGIN).fill(UNTOUCHED);
  const row = (m: number) =>
    parts.flatMap(({ width, data }) => {
      const begin = m * (width + GATHER_MARGIN);
      return [...data.subarray(begin, begin + width)];
    });
  return Int32Array.from(Array.from({ length: rows }, (_, m) => [...row(m), ...margin]).flat());
}
