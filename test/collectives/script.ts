/**
 * Scripts of collectives: plain data, so that the same steps run in worker threads and in turns. A pass carries out one
 * rank's script and returns the bits that each step left behind.
 */
import type { AllGather, AllReduce, Broadcast, Pass } from "../../src/collectives/collective.js";
import { Arena } from "../../src/core/arena.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import type { Operand } from "../../src/core/operand.js";
import { bytesOf } from "../../src/core/tensor.js";

export type ElementType = "f32" | "i32";

export type Step =
  /** Sums made-up values, or, where given, these bits of each rank. */
  | {
      readonly do: "allReduce";
      readonly count: number;
      readonly seed: number;
      readonly bits?: readonly Int32Array[];
      readonly site?: string;
    }
  | {
      readonly do: "allGather";
      readonly rows: number;
      readonly widths: readonly number[];
      readonly type: ElementType;
      readonly seed: number;
    }
  | {
      readonly do: "broadcast";
      readonly count: number;
      readonly root: number;
      readonly type: ElementType;
      readonly seed: number;
    }
  | { readonly do: "barrier" }
  /** From now on the addon, as this thread has loaded it, uses an instruction set. */
  | { readonly do: "selectIsa"; readonly isa: string }
  /** Many small all-reduces in a row over the same operands, each checked; returns how many elements were wrong. */
  | { readonly do: "storm"; readonly iterations: number; readonly most: number };

/** Columns by which operands of an all-gather are wider than what they carry: rows must not be taken for packed. */
export const GATHER_MARGIN = 3;

/** What no step may overwrite. */
export const UNTOUCHED = 0x5eed5eed;

/** Repeatable bits of one rank: floats of mixed sign over eight binades, or any integers. */
export function madeUpBits(type: ElementType, rank: number, seed: number, count: number): Int32Array {
  let state = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(rank + 1, 0x85ebca6b);
  return Int32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    if (type === "i32") return state;
    const exponent = 123 + ((state >>> 24) & 7);
    return (state & 0x80000000) | (exponent << 23) | ((state >>> 1) & 0x7fffff);
  });
}

/** A bound operand `[rows, columns]`; the addon knows it as well where it is loaded. */
export function makeOperand(type: ElementType, rows: number, columns: number): Operand {
  const arena = Arena.create("test", rows * columns * 4);
  const tensor = arena.allocate("payload", type, [rows, columns]);
  const status = nativeAddon();
  const handle = status.loaded ? status.addon.bind(bytesOf(tensor), type, rows, columns) : 0;
  return { tensor, handle, rows, columns };
}

export function bitsOf(operand: Operand): Int32Array {
  const { arena, byteOffset } = operand.tensor;
  return new Int32Array(arena.buffer, byteOffset, operand.rows * operand.columns);
}

export function* scriptPass(script: readonly Step[], rank: number, worldSize: number): Pass<Int32Array[]> {
  const results: Int32Array[] = [];
  for (const step of script) results.push(yield* stepPass(step, rank, worldSize));
  return results;
}

function* stepPass(step: Step, rank: number, worldSize: number): Pass<Int32Array> {
  switch (step.do) {
    case "allReduce":
      return yield* allReducePass(step.bits?.[rank] ?? madeUpBits("f32", rank, step.seed, step.count), step.site);
    case "allGather": {
      const width = step.widths[rank] ?? 0;
      const total = step.widths.reduce((sum, each) => sum + each, 0);
      const data = makeOperand(step.type, step.rows, width + GATHER_MARGIN);
      const out = makeOperand(step.type, step.rows, total + GATHER_MARGIN);
      bitsOf(data).set(madeUpBits(step.type, rank, step.seed, data.rows * data.columns));
      bitsOf(out).fill(UNTOUCHED);
      yield { kind: "allGather", data, out, widths: step.widths, rows: step.rows } satisfies AllGather;
      return bitsOf(out).slice();
    }
    case "broadcast": {
      const data = makeOperand(step.type, 1, step.count);
      bitsOf(data).set(madeUpBits(step.type, rank, step.seed, step.count));
      yield { kind: "broadcast", data, root: step.root, count: step.count } satisfies Broadcast;
      return bitsOf(data).slice();
    }
    case "barrier":
      yield { kind: "barrier" };
      return new Int32Array(0);
    case "selectIsa": {
      const status = nativeAddon();
      if (status.loaded) status.addon.selectIsa(step.isa);
      return new Int32Array(0);
    }
    case "storm":
      return yield* stormPass(step.iterations, step.most, rank, worldSize);
  }
}

function* allReducePass(bits: Int32Array, site?: string): Pass<Int32Array> {
  const data = makeOperand("f32", 1, bits.length + 1);
  bitsOf(data).fill(UNTOUCHED);
  bitsOf(data).set(bits);
  const named = site === undefined ? {} : { site };
  yield { kind: "allReduce", ...named, data, count: bits.length } satisfies AllReduce;
  return bitsOf(data).slice();
}

/** Values are small integers, so their sums are exact and known without asking another rank. */
function* stormPass(iterations: number, most: number, rank: number, worldSize: number): Pass<Int32Array> {
  const data = makeOperand("f32", 1, most);
  const bits = bitsOf(data);
  const values = new Float32Array(bits.buffer, bits.byteOffset, most);
  const request: AllReduce = { kind: "allReduce", data, count: 0 };
  const rankSum = (worldSize * (worldSize + 1)) / 2;
  let wrong = 0;
  for (let iteration = 0; iteration < iterations; iteration++) {
    request.count = 1 + ((iteration * 37) % most);
    for (let i = 0; i < request.count; i++) values[i] = (rank + 1) * (1 + ((iteration + i) & 1023));
    yield request;
    for (let i = 0; i < request.count; i++) {
      if (values[i] !== rankSum * (1 + ((iteration + i) & 1023))) wrong++;
    }
  }
  return Int32Array.of(wrong);
}
