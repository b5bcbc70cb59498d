/**
 * What `apply` makes of activations, against the exact product of the dequantized weights in f64, and what it must leave
 * alone: its inputs, the rows beyond those it was asked for, its weights, and the memory of its rank.
 */
import type { AllReduce, Pass } from "../collectives/collective.js";
import { driveInTurns } from "../collectives/turns.js";
import { ArenaAllocator } from "../core/arena.js";
import type { Operand } from "../core/operand.js";
import { bytesOf, f32Of, i32Of } from "../core/tensor.js";
import type { LinearModule } from "../layers/layer-context.js";
import { rangeSize } from "../parallel/partition.js";
import { describePlace, SimulationAssertionError } from "./assertion-error.js";
import { failed, type LoadedRank, modulesOf, within } from "./conformance-load.js";
import {
  checkRecordedLookup,
  checkRecording,
  type LookupSeat,
  lookUp,
  type RecordingSeat,
} from "./conformance-recording.js";
import { shardValues } from "./conformance-values.js";
import { seededRandom } from "./turn-order.js";

/** Rows of activations: fewer than there is room for, as in a step. */
const ROWS = 3;
const CAPACITY = 5;

interface Seat extends RecordingSeat {
  /** Dequantized, `[outputs, inputs]` of this rank. */
  readonly weights: Float32Array;
}

/**
 * Applies a layer on all ranks to some activations and a bias, twice. Every product must be within
 * `tolerance * (sum |x w| + |bias|)` of the exact one.
 */
export async function checkApply(
  where: string,
  ranks: readonly LoadedRank[],
  index: number,
  tolerance: number | undefined,
): Promise<void> {
  const modules = modulesOf(ranks, index);
  const seats = await Promise.all(modules.map((module, rank) => takeSeat(module, ranks[rank])));
  const before = seats.map(inputBytes);
  const first = await run(where, ranks, seats);
  for (const [rank, seat] of seats.entries()) {
    checkProducts(where, seat, rank, seats, tolerance);
    checkUntouched(where, seat, before[rank] ?? []);
    await checkWeights(where, seat);
  }
  checkAlike(where, seats);
  const second = await run(where, ranks, seats);
  compareBytes(`${where}: applied again to the same`, seats, first, second);
  for (const [rank, seat] of seats.entries()) {
    const kernels = ranks[rank]?.kernels;
    if (kernels !== undefined) checkRecording(where, seat, kernels, ROWS);
  }
}

async function takeSeat(module: LinearModule, loaded: LoadedRank | undefined): Promise<Seat> {
  const { layer } = module;
  const kernels = loaded?.kernels;
  if (kernels === undefined) throw new RangeError(`no rank ${layer.rank}`);
  const memory = new ArenaAllocator(`rank${layer.rank}.activations`, 64 * 1024);
  const operand = (name: string, shape: readonly number[]): Operand => {
    return kernels.bind(memory.allocate(`${layer.prefix}.${name}`, "f32", shape));
  };
  const x = operand("x", [CAPACITY, rangeSize(layer.inputs)]);
  const out = operand("out", [CAPACITY, layer.outputSizePerPartition]);
  const bias = operand("bias", [layer.outputSizePerPartition]);
  // Rows beyond those in use hold what other steps left: nothing may depend on it.
  f32Of(x.tensor).fill(Number.NaN);
  const random = seededRandom(7);
  for (let row = 0; row < ROWS; row++) {
    for (let column = 0; column < layer.inputSize; column++) {
      const value = Math.fround(4 * random() - 2);
      const own = column >= layer.inputs.start && column < layer.inputs.end;
      if (own) f32Of(x.tensor)[row * rangeSize(layer.inputs) + column - layer.inputs.start] = value;
    }
  }
  for (const { rows, localOffset } of layer.parts) {
    for (let row = rows.start; row < rows.end; row++) f32Of(bias.tensor)[localOffset + row - rows.start] = biasOf(row);
  }
  return { module, weights: await shardValues(module), out, x, bias };
}

/** Of a row of a whole matrix. */
function biasOf(row: number): number {
  return Math.fround(((row * 37) % 19) / 7 - 1);
}

/** Runs the layer on all ranks. Nothing may be bound meanwhile: what is bound in every step is never given back. */
async function run(
  where: string,
  ranks: readonly LoadedRank[],
  seats: readonly Seat[],
): Promise<readonly Uint8Array[]> {
  for (const { out } of seats) f32Of(out.tensor).fill(Number.NaN);
  const guards = ranks.map(({ kernels }) => {
    const bind = kernels.bind.bind(kernels);
    kernels.bind = ({ name }) => {
      throw failed(`${where}: apply`, new Error(`it binds ${name}, which belongs into processWeightsAfterLoading`));
    };
    return () => {
      kernels.bind = bind;
    };
  });
  try {
    const passes = seats.map((seat, rank) => passOf(seat, rank, seats.length, ranks[rank]));
    await within(`${where}: apply`, {}, () => driveInTurns(passes));
  } finally {
    for (const release of guards) release();
  }
  return seats.map(({ out }) => bytesOf(out.tensor).slice());
}

/** What the layer's own forward does, with a bias that need not be in the checkpoint. */
function* passOf(
  { module, out, x, bias }: Seat,
  rank: number,
  worldSize: number,
  loaded: LoadedRank | undefined,
): Pass {
  const { layer, method } = module;
  const kernels = loaded?.kernels;
  if (kernels === undefined) return;
  if (layer.kind !== "row" || worldSize === 1) {
    method.apply(kernels, out, x, bias, ROWS);
    return;
  }
  if (method.applyReduced !== undefined) {
    yield* method.applyReduced(kernels, out, x, bias, ROWS);
    return;
  }
  method.apply(kernels, out, x, rank === 0 ? bias : null, ROWS);
  const request: AllReduce = {
    kind: "allReduce",
    site: layer.prefix,
    data: out,
    count: ROWS * layer.outputSizePerPartition,
  };
  yield request;
}

function checkProducts(
  where: string,
  { module, out }: Seat,
  rank: number,
  seats: readonly Seat[],
  tolerance: number | undefined,
): void {
  const { layer } = module;
  // In a row-parallel layer the result is the sum over all ranks; otherwise a rank's own.
  const summed = layer.kind === "row" ? seats : seats.slice(rank, rank + 1);
  const received = f32Of(out.tensor);
  for (const { rows, localOffset, prefix, shardId } of layer.parts) {
    for (let m = 0; m < ROWS; m++) {
      for (let n = 0; n < rangeSize(rows); n++) {
        const exact = exactProduct(summed, m, localOffset + n, biasOf(rows.start + n));
        const value = received[m * out.columns + localOffset + n] ?? Number.NaN;
        const error = Math.abs(value - exact.value);
        const allowed = (tolerance ?? summingError(layer.inputSize, seats.length)) * exact.magnitude;
        // Written so that a NaN fails, too.
        if (error <= allowed) continue;
        const index = [m, rows.start + n];
        throw new SimulationAssertionError(
          `${where}: apply, ${prefix}, ${describePlace({ rank, shardId, index })} of the output: expected ` +
            `${exact.value} within ${allowed} but received ${value}`,
          { layer: layer.prefix, rank, shardId, index, expected: exact.value, received: value },
        );
      }
    }
  }
}

/**
 * What products of f32 summed in f32 may lose, in parts of the sum of their magnitudes: one rounding (2^-24) a product, a
 * sum, a rank and a bias, in whatever order (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
 */
function summingError(inputs: number, worldSize: number): number {
  const unit = 2 ** -24;
  const roundings = (inputs + worldSize + 2) * unit;
  return roundings / (1 - roundings);
}

function exactProduct(
  seats: readonly Seat[],
  m: number,
  n: number,
  bias: number,
): { readonly value: number; readonly magnitude: number } {
  let value = bias;
  let magnitude = Math.abs(bias);
  for (const { x, weights } of seats) {
    const { columns } = x;
    const activations = f32Of(x.tensor);
    for (let k = 0; k < columns; k++) {
      const product = (activations[m * columns + k] ?? Number.NaN) * (weights[n * columns + k] ?? Number.NaN);
      value += product;
      magnitude += Math.abs(product);
    }
  }
  return { value, magnitude };
}

function inputBytes({ x, bias }: Seat): readonly Uint8Array[] {
  return [x, bias].map(({ tensor }) => bytesOf(tensor).slice());
}

function checkUntouched(where: string, seat: Seat, before: readonly Uint8Array[]): void {
  const { layer } = seat.module;
  const after = inputBytes(seat);
  for (const [i, what] of ["its activations", "the bias"].entries()) {
    const index = firstDifference(before[i] ?? new Uint8Array(), after[i] ?? new Uint8Array());
    if (index < 0) continue;
    const element = Math.floor(index / 4);
    throw new SimulationAssertionError(
      `${where}: apply on rank ${layer.rank}: expected ${what} to be left alone but element ${element} has changed`,
      { layer: layer.prefix, rank: layer.rank, index: [element], expected: "unchanged", received: "changed" },
    );
  }
  const beyond = f32Of(seat.out.tensor).subarray(ROWS * seat.out.columns);
  const written = beyond.findIndex((value) => !Number.isNaN(value));
  if (written < 0) return;
  throw new SimulationAssertionError(
    `${where}: apply on rank ${layer.rank}: expected ${ROWS} rows of output but row ${ROWS + Math.floor(written / seat.out.columns)} was written`,
    { layer: layer.prefix, rank: layer.rank, expected: ROWS, received: CAPACITY },
  );
}

async function checkWeights(where: string, { module, weights }: Seat): Promise<void> {
  const after = await shardValues(module);
  const { prefix, rank } = module.layer;
  const index = after.findIndex((value, i) => !Object.is(value, weights[i]));
  if (index < 0) return;
  throw new SimulationAssertionError(
    `${where}: apply on rank ${rank}: expected its weights to be left alone but element ${index} has changed from ` +
      `${weights[index]} to ${after[index]}`,
    { layer: prefix, rank, index: [index], expected: weights[index], received: after[index] },
  );
}

/** After a row-parallel layer, all ranks hold the same bits. */
function checkAlike(where: string, seats: readonly Seat[]): void {
  const [first] = seats;
  if (first === undefined || first.module.layer.kind !== "row") return;
  const expected = seats.map(() => bytesOf(first.out.tensor));
  compareBytes(
    `${where}: after the sum over ranks`,
    seats,
    expected,
    seats.map(({ out }) => bytesOf(out.tensor)),
  );
}

function compareBytes(
  what: string,
  seats: readonly Seat[],
  expected: readonly Uint8Array[],
  received: readonly Uint8Array[],
): void {
  for (const [rank, { module, out }] of seats.entries()) {
    const byte = firstDifference(expected[rank] ?? new Uint8Array(), received[rank] ?? new Uint8Array());
    if (byte < 0) continue;
    const element = Math.floor(byte / 4);
    const index = [Math.floor(element / out.columns), element % out.columns];
    throw new SimulationAssertionError(
      `${what}: ${module.layer.prefix}, ${describePlace({ rank, index })} of the output: expected the same bits but they differ`,
      { layer: module.layer.prefix, rank, index, expected: "the same bits", received: "others" },
    );
  }
}

/** Index of the first byte that differs; -1 if none does. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  const length = Math.max(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return -1;
}

/** Looks every id of an embedding up on all ranks: the sum over ranks is the whole table's row, to the bit. */
export async function checkEmbed(
  where: string,
  ranks: readonly LoadedRank[],
  index: number,
  table: Float32Array,
): Promise<void> {
  const modules = modulesOf(ranks, index);
  const width = modules[0]?.layer.inputSize ?? 0;
  const count = table.length / width;
  const seats = modules.map((module, rank): LookupSeat => {
    const { layer, method } = module;
    const kernels = ranks[rank]?.kernels;
    if (kernels === undefined) throw new RangeError(`no rank ${rank}`);
    if (method.embed === undefined) {
      throw failed(`${where}, ${layer.prefix}`, new Error("the method of an embedding has no embed()"), { rank });
    }
    const memory = new ArenaAllocator(`rank${rank}.lookups`, 64 * 1024);
    const ids = kernels.bind(memory.allocate("ids", "i32", [count]));
    // Backwards: a row's place says nothing of its id.
    i32Of(ids.tensor).forEach((_, i, all) => {
      all[i] = count - 1 - i;
    });
    const out = kernels.bind(memory.allocate("out", "f32", [count, width]));
    f32Of(out.tensor).fill(Number.NaN);
    return { module, kernels, out, ids };
  });
  await within(`${where}: embed`, {}, () => driveInTurns(seats.map((seat) => lookUpOnAll(seat, count))));
  for (const [rank, { out }] of seats.entries()) {
    const received = f32Of(out.tensor);
    for (let id = 0; id < count; id++) {
      for (let column = 0; column < width; column++) {
        const expected = table[id * width + column] ?? Number.NaN;
        const value = received[(count - 1 - id) * width + column] ?? Number.NaN;
        if (expected === value) continue;
        throw new SimulationAssertionError(
          `${where}: embed, ${modules[rank]?.layer.prefix ?? ""}, ${describePlace({ rank, index: [id, column] })}: ` +
            `expected ${expected} but received ${value}`,
          { rank, index: [id, column], expected, received: value },
        );
      }
    }
  }
  for (const seat of seats) checkRecordedLookup(where, seat, count);
}

function* lookUpOnAll(seat: LookupSeat, rows: number): Pass {
  lookUp(seat, rows);
  const { module, out } = seat;
  const { layer } = module;
  if (layer.worldSize > 1) yield { kind: "allReduce", site: layer.prefix, data: out, count: rows * out.columns };
}
