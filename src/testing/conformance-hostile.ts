/**
 * Checkpoints that lie. Every case is made of the fixture by changing one tensor; it must end in a ShardloomError, or in the
 * very values of the checkpoint that was not changed. That covers what can be known from outside: which other values a
 * changed code or scale ought to give, only the format knows.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { type DType, dtypeBytes, f32ToBf16, f32ToF16, isFloat } from "../core/dtype.js";
import { CheckpointError } from "../core/errors.js";
import { describeShape, elementCount } from "../core/tensor.js";
import { SimulationAssertionError } from "./assertion-error.js";
import type { PluginCheck } from "./conformance-check.js";
import type { Subject } from "./conformance-fixture.js";
import { findLayers } from "./conformance-kinds.js";
import { type Cut, LAYER_KINDS, type LayerKind, type LayerSpec } from "./conformance-layers.js";
import { describeError, isTyped, loadRank, within } from "./conformance-load.js";
import { shardValues } from "./conformance-values.js";
import { type Preparation, prepare } from "./preparation.js";
import { WatchedRanks } from "./watched-ranks.js";

/** At two ranks each sees a part of what was changed, and what is wrong for one may be right for the other. */
const CUT: Cut = { worldSize: 2, style: "even" };

/** Larger than any buffer: whoever believes it fails at once, and not by filling the memory. */
const ABSURD_EXTENT = 2 ** 45;

/** What takes the place of a tensor: null for nothing. The text says what was done. */
interface Damage {
  readonly what: string;
  readonly tensor: CheckpointTensor | null;
}

type Damaging = (tensor: CheckpointTensor) => readonly Damage[];

export function hostileChecks(subject: Subject): readonly PluginCheck[] {
  const check = (what: string, run: () => Promise<void>): PluginCheck => ({ name: `${subject.name}: ${what}`, run });
  // A loader of the plugin's own makes its tensors; files are what it may be lied to by.
  if (subject.ownsLoader) return [check("a tensor that no layer takes is reported", () => checkSurplus(subject))];
  const damaged = (what: string, damaging: Damaging): PluginCheck => check(what, () => checkDamage(subject, damaging));
  const { finite } = subject.fixture;
  return [
    damaged("a missing tensor is refused", () => [{ what: "taken away", tensor: null }]),
    damaged("a tensor that ends early is refused", endingEarly),
    damaged("a tensor of another shape is refused", reshaped),
    damaged("a tensor of another dtype is refused", retyped),
    ...(finite === undefined
      ? []
      : [damaged("a scale that is no number is refused", (tensor) => (finite(tensor.name) ? notNumbers(tensor) : []))]),
    check("a tensor that no layer takes is reported", () => checkSurplus(subject)),
  ];
}

function endingEarly(tensor: CheckpointTensor): readonly Damage[] {
  const sizeBytes = bytesIn(tensor);
  const end = Math.floor(sizeBytes / 2);
  const read: CheckpointTensor["read"] = (destination, byteOffset) => {
    if (byteOffset + destination.length <= end) {
      tensor.read(destination, byteOffset);
      return;
    }
    throw new CheckpointError("SHORT_READ", `${tensor.file}: ${tensor.name} ends after ${end} of ${sizeBytes} bytes`, {
      tensor: tensor.name,
      file: tensor.file,
      expected: sizeBytes,
      received: end,
    });
  };
  return [{ what: `cut off after ${end} of ${sizeBytes} bytes`, tensor: { ...plain(tensor), read } }];
}

function reshaped(tensor: CheckpointTensor): readonly Damage[] {
  const { shape, dtype } = tensor;
  const [first = 1, ...others] = shape;
  const last = shape.at(-1) ?? 1;
  const shapes = [
    [first - 1, ...others],
    [first + 1, ...others],
    [...shape.slice(0, -1), last + 1],
    shape.toReversed(),
    [elementCount(shape)],
    [ABSURD_EXTENT, ...others],
    [],
  ];
  const distinct = new Map(shapes.map((other) => [JSON.stringify(other), other]));
  distinct.delete(JSON.stringify(shape));
  return [...distinct.values()].map((other) => {
    return { what: `made ${describeShape(dtype, other)}`, tensor: changed(tensor, other, dtype) };
  });
}

/** Another dtype of the same bytes, or of too few. A float that is called another float may be one: nobody can know. */
function retyped(tensor: CheckpointTensor): readonly Damage[] {
  const { dtype, shape } = tensor;
  const bytes = dtypeBytes(dtype);
  const asBytes = [...shape.slice(0, -1), (shape.at(-1) ?? 1) * bytes];
  const others: [DType, readonly number[]][] = [
    [dtype === "u8" ? "i8" : "u8", asBytes],
    [dtype === "i32" ? "u8" : "i32", shape],
  ];
  // Fewer bytes than whoever does not look will read.
  if (bytes > 1) others.push(["u8", shape]);
  if (!isFloat(dtype)) others.push(["f32", shape], ["bf16", shape]);
  return others.map(([other, otherShape]) => {
    return { what: `called ${describeShape(other, otherShape)}`, tensor: changed(tensor, otherShape, other) };
  });
}

/** Where the first and the last number are none. */
function notNumbers(tensor: CheckpointTensor): readonly Damage[] {
  const { dtype } = tensor;
  if (!isFloat(dtype)) return [];
  const size = dtypeBytes(dtype);
  const last = elementCount(tensor.shape) - 1;
  return [0, last].flatMap((element) => {
    return [Number.NaN, Number.POSITIVE_INFINITY].map((value) => {
      const bytes = wholeBytes(tensor);
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      if (dtype === "f32") view.setFloat32(element * size, value, true);
      else view.setUint16(element * size, dtype === "bf16" ? f32ToBf16(value) : f32ToF16(value), true);
      return { what: `given ${value} as element ${element}`, tensor: { ...plain(tensor), read: readerOf(bytes) } };
    });
  });
}

/** The same bytes, as far as they go, under another shape or dtype. What is beyond them is zero. */
function changed(tensor: CheckpointTensor, shape: readonly number[], dtype: DType): CheckpointTensor {
  const bytes = wholeBytes(tensor);
  const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
  const read: CheckpointTensor["read"] = (destination, byteOffset) => {
    checkRange(tensor.name, byteOffset, destination.length, sizeBytes);
    destination.fill(0);
    destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
  };
  return { ...plain(tensor), shape, dtype, read };
}

function plain({ name, dtype, shape, file, read }: CheckpointTensor): CheckpointTensor {
  return { name, dtype, shape, file, read };
}

function readerOf(bytes: Uint8Array): CheckpointTensor["read"] {
  return (destination, byteOffset) => {
    checkRange("a damaged tensor", byteOffset, destination.length, bytes.length);
    destination.set(bytes.subarray(byteOffset, byteOffset + destination.length));
  };
}

function checkRange(name: string, start: number, length: number, sizeBytes: number): void {
  if (start >= 0 && start + length <= sizeBytes) return;
  throw new RangeError(`${name}: bytes ${start} to ${start + length} are outside its ${sizeBytes} bytes`);
}

function bytesIn({ shape, dtype }: CheckpointTensor): number {
  return elementCount(shape) * dtypeBytes(dtype);
}

function wholeBytes(tensor: CheckpointTensor): Uint8Array {
  const bytes = new Uint8Array(bytesIn(tensor));
  tensor.read(bytes, 0);
  return bytes;
}

/** A layer whose tensors are damaged, with what it holds when they are not. */
interface Target {
  readonly preparation: Preparation;
  readonly layer: LayerSpec;
  readonly values: readonly Float32Array[];
  /** Names of its tensors. */
  readonly tensors: readonly string[];
}

async function checkDamage(subject: Subject, damaging: Damaging): Promise<void> {
  let cases = 0;
  for (const target of await findTargets(subject)) {
    for (const name of target.tensors) cases += await damage(target, name, damaging);
  }
  if (cases > 0) return;
  throw new SimulationAssertionError("expected tensors to damage but the layers of the model have none", {
    expected: "a tensor",
    received: "none",
  });
}

/**
 * One layer of each kind that is stored in a way of its own: the first one that the format does not leave plain. The head
 * comes first, as there may be nothing else that an option is about.
 */
async function findTargets(subject: Subject): Promise<readonly Target[]> {
  const targets: Target[] = [];
  const kinds: readonly LayerKind[] = LAYER_KINDS.filter((kind) => kind !== "replicated" && !subject.skips(kind));
  for (const kind of kinds) {
    const { preparation, layers } = await findLayers(subject, kind);
    const heads = layers.filter(({ isHead }) => isHead === true);
    const others = layers.filter(({ isHead }) => isHead !== true);
    for (const layer of [...heads, ...others].filter((each) => each.fits(CUT) && each.aligned(CUT))) {
      const names = new Set<string>();
      let own = false;
      const values = await loadValues(
        preparation,
        layer,
        (checkpoint) => {
          for (const name of checkpoint.tensors.keys()) if (belongs(name, layer)) names.add(name);
          return checkpoint;
        },
        (isOwn) => {
          own ||= isOwn;
        },
      );
      if (!own) continue;
      targets.push({ preparation, layer, values, tensors: [...names] });
      break;
    }
  }
  return targets;
}

function belongs(tensor: string, { prefix, parts }: LayerSpec): boolean {
  return [prefix, ...parts.map((part) => part.prefix)].some((module) => tensor.startsWith(`${module}.`));
}

/** What a layer holds on both ranks. `onMethod` hears whether the format brings a method of its own. */
async function loadValues(
  preparation: Preparation,
  layer: LayerSpec,
  alter: (checkpoint: Checkpoint) => Checkpoint,
  onMethod: (isOwn: boolean) => void = () => undefined,
): Promise<readonly Float32Array[]> {
  const values: Float32Array[] = [];
  for (let rank = 0; rank < CUT.worldSize; rank++) {
    const { linears } = await loadRank(preparation, {
      rank,
      cut: CUT,
      layers: [layer],
      alter,
      watch: (config) => ({
        name: config.name,
        linearMethod(own) {
          const method = config.linearMethod(own);
          onMethod(method !== null);
          return method;
        },
      }),
    });
    for (const module of linears) values.push(await shardValues(module));
  }
  return values;
}

/** Returns how many ways there were to damage the tensor. */
async function damage(target: Target, name: string, damaging: Damaging): Promise<number> {
  const { preparation, layer } = target;
  // Cases are made of the tensor of a checkpoint that is open, anew each time.
  for (let i = 0; ; i++) {
    let chosen: Damage | undefined;
    let values: readonly Float32Array[] = [];
    try {
      values = await loadValues(preparation, layer, (checkpoint) => {
        const tensor = checkpoint.tensors.get(name);
        chosen = tensor === undefined ? undefined : damaging(tensor)[i];
        return chosen === undefined ? checkpoint : replaced(checkpoint, name, chosen.tensor);
      });
    } catch (error) {
      if (chosen === undefined) throw error;
      checkError(layer, name, chosen, error);
      continue;
    }
    if (chosen === undefined) return i;
    checkSame(target, name, chosen, values);
  }
}

function replaced(checkpoint: Checkpoint, name: string, tensor: CheckpointTensor | null): Checkpoint {
  const tensors = new Map(checkpoint.tensors);
  if (tensor === null) tensors.delete(name);
  else tensors.set(name, tensor);
  return {
    tensors,
    get bytesRead() {
      return checkpoint.bytesRead;
    },
    close: () => checkpoint.close(),
  };
}

function checkError(layer: LayerSpec, tensor: string, { what }: Damage, error: unknown): void {
  const original = error instanceof SimulationAssertionError ? (error.cause ?? error) : error;
  if (isTyped(original)) return;
  const received = describeError(original);
  const failure = new SimulationAssertionError(
    `${layer.prefix}, ${tensor} ${what}: expected a ShardloomError that says what is wrong but received ${received}`,
    { layer: layer.prefix, tensor, expected: "a ShardloomError", received },
  );
  failure.cause = original;
  throw failure;
}

function checkSame(
  { layer, values }: Target,
  tensor: string,
  { what }: Damage,
  received: readonly Float32Array[],
): void {
  for (const [rank, expected] of values.entries()) {
    const shard = received[rank] ?? new Float32Array();
    const index = expected.findIndex((value, i) => !Object.is(value, shard[i]));
    if (index < 0) continue;
    throw new SimulationAssertionError(
      `${layer.prefix}, ${tensor} ${what}: expected an error, or the values it had, but rank ${rank} loaded other values in ` +
        `silence: element ${index} is ${shard[index]} instead of ${expected[index]}`,
      { layer: layer.prefix, tensor, rank, index: [index], expected: expected[index], received: shard[index] },
    );
  }
}

const SURPLUS = "model.layers.0.conformance_surplus.weight";

/** A whole model with one tensor more: whoever shows layers a view of the checkpoint must not lose it. */
async function checkSurplus(subject: Subject): Promise<void> {
  const options = subject.options(1);
  const preparation = await within("the model", {}, () => prepare(options));
  const { modelLoaders } = preparation.registries;
  const loader = modelLoaders.select(preparation.ranks.path, preparation.ranks.loadFormat);
  const format = "conformance-surplus";
  modelLoaders.register(
    {
      format,
      matches: () => false,
      describe: (path) => loader.describe(path),
      open: async (path, expected) => withSurplus(await loader.open(path, expected)),
    },
    "shardloom/testing",
  );
  const ranks = { ...preparation.ranks, loadFormat: format };
  try {
    (await WatchedRanks.load({ ...preparation, ranks }, { kernels: "reference", order: "byRank" })).release();
  } catch (error) {
    if (isTyped(error) && error.code === "UNEXPECTED_TENSOR" && error.details.tensor === SURPLUS) return;
    throw new SimulationAssertionError(
      `a checkpoint with ${SURPLUS}: expected UNEXPECTED_TENSOR but received ${describeError(error)}`,
      { tensor: SURPLUS, expected: "UNEXPECTED_TENSOR", received: describeError(error) },
    );
  }
  throw new SimulationAssertionError(`a checkpoint with ${SURPLUS}: expected UNEXPECTED_TENSOR but it was loaded`, {
    tensor: SURPLUS,
    expected: "UNEXPECTED_TENSOR",
    received: "no error",
  });
}

function withSurplus(checkpoint: Checkpoint): Checkpoint {
  const bytes = new Uint8Array(16);
  const tensor = { name: SURPLUS, dtype: "f32", shape: [2, 2], file: "surplus", read: readerOf(bytes) } as const;
  const tensors = new Map(checkpoint.tensors).set(SURPLUS, tensor);
  return {
    tensors,
    get bytesRead() {
      return checkpoint.bytesRead;
    },
    close: () => checkpoint.close(),
  };
}
