/** Loads layers of one model on one rank or on all, as ranks do, with an eye on what the plugin does meanwhile. */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { ArenaAllocator } from "../core/arena.js";
import { InternalError, invariant, PluginError, ShardloomError } from "../core/errors.js";
import { bytesOf } from "../core/tensor.js";
import type { Kernels } from "../kernels/kernels.js";
import { createReferenceKernels } from "../kernels/reference.js";
import { LayerContext, type LinearModule } from "../layers/layer-context.js";
import type { PlacementObserver } from "../layers/shard-placement.js";
import { loadWeights } from "../loading/load-weights.js";
import type { QuantizationConfig } from "../quantization/contract.js";
import { unquantized } from "../quantization/unquantized.js";
import { type AssertionDetails, SimulationAssertionError } from "./assertion-error.js";
import { openCheckpoint } from "./conformance-fixture.js";
import type { Cut, LayerSpec } from "./conformance-layers.js";
import type { Preparation } from "./preparation.js";

/** Layers of one rank that are ready for use, in the order of their specs. */
export interface LoadedRank {
  readonly linears: readonly LinearModule[];
  readonly quantization: QuantizationConfig;
  readonly context: LayerContext;
  readonly kernels: Kernels;
}

export interface LoadRankOptions {
  readonly rank: number;
  readonly cut: Cut;
  readonly layers: readonly LayerSpec[];
  /** The checkpoint as the plugin gets it; by default as it is. */
  readonly alter?: ((checkpoint: Checkpoint) => Checkpoint) | undefined;
  /** The config as the layers get it; by default as it is. */
  readonly watch?: ((config: QuantizationConfig) => QuantizationConfig) | undefined;
  readonly observer?: PlacementObserver | undefined;
  /** Called once all layers are ready, with the checkpoint, still open, and with the one that layers were shown. */
  readonly whileOpen?: ((checkpoint: Checkpoint, shown: Checkpoint) => void) | undefined;
}

/** Loads one rank. The checkpoint is opened for it and closed. Throws what the plugin or loading throws. */
export async function loadRank(preparation: Preparation, options: LoadRankOptions): Promise<LoadedRank> {
  const { rank, cut, layers, alter = same, watch = same, observer, whileOpen } = options;
  const { ranks, registries } = preparation;
  const kernels = createReferenceKernels();
  const opened = await openCheckpoint(preparation);
  try {
    const checkpoint = alter(opened);
    const quantization =
      ranks.quantization === null ? unquantized : registries.quantization.create(ranks.quantization, checkpoint);
    const context = new LayerContext({
      rank,
      worldSize: cut.worldSize,
      kernels,
      weights: new ArenaAllocator(`rank${rank}.weights`, 64 * 1024),
      quantization: watch(quantization),
      dtype: ranks.dtype,
      ...(observer === undefined ? {} : { observer }),
    });
    const linears = layers.map((layer) => layer.build(context, cut));
    const shown = quantization.checkpoint ?? checkpoint;
    loadWeights(context, shown, { ignores: () => true });
    whileOpen?.(checkpoint, shown);
    return { linears, quantization, context, kernels };
  } finally {
    opened.close();
  }
}

/** The same, with an error that says which rank it was. */
export function loadLocated(preparation: Preparation, options: LoadRankOptions): Promise<LoadedRank> {
  const { rank, cut, layers } = options;
  const where = `${describeCut(cut)}, rank ${rank}, ${describeLayers(layers)}`;
  return within(where, { rank }, () => loadRank(preparation, options));
}

/** Loads all ranks of a cut, one after another. */
export async function loadRanks(
  preparation: Preparation,
  options: Omit<LoadRankOptions, "rank">,
): Promise<readonly LoadedRank[]> {
  const loaded: LoadedRank[] = [];
  for (let rank = 0; rank < options.cut.worldSize; rank++) {
    loaded.push(await loadLocated(preparation, { ...options, rank }));
  }
  return loaded;
}

/** A layer's module on every rank, by the layer's position. */
export function modulesOf(ranks: readonly LoadedRank[], index: number): readonly LinearModule[] {
  return ranks.map(({ linears }) => {
    const module = linears[index];
    invariant(module !== undefined, `no layer ${index} was built`);
    return module;
  });
}

/** Runs something of the plugin's. What it throws, other than an assertion, becomes one that says where. */
export async function within<Result>(
  where: string,
  details: Omit<AssertionDetails, "expected" | "received">,
  run: () => Result | Promise<Result>,
): Promise<Result> {
  try {
    return await run();
  } catch (cause) {
    if (cause instanceof SimulationAssertionError) throw cause;
    // An assertion made inside one of the plugin's hooks comes back as the hook's failure.
    if (cause instanceof Error && cause.cause instanceof SimulationAssertionError) throw cause.cause;
    throw failed(where, cause, details);
  }
}

/** The assertion error of something that was not to throw. */
export function failed(
  where: string,
  cause: unknown,
  details: Omit<AssertionDetails, "expected" | "received"> = {},
): SimulationAssertionError {
  const received = describeError(cause);
  const error = new SimulationAssertionError(`${where}: expected no error but received ${received}`, {
    ...details,
    expected: "no error",
    received,
  });
  error.cause = cause;
  return error;
}

/** `CheckpointError SHAPE_MISMATCH: ...` */
export function describeError(error: unknown): string {
  if (error instanceof ShardloomError) return `${error.name} ${error.code}: ${error.message}`;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

/**
 * Whether an error is an answer to bad input: a ShardloomError, and neither a broken invariant nor what shardloom makes of
 * an exception that a plugin did not mean to throw.
 */
export function isTyped(error: unknown): error is ShardloomError {
  if (!(error instanceof ShardloomError) || error instanceof InternalError) return false;
  return !(error instanceof PluginError && error.code === "PLUGIN_FAILED");
}

export function describeCut({ worldSize, style }: Cut): string {
  return worldSize === 1 ? "1 rank" : `${worldSize} ranks, cut ${style === "anywhere" ? "anywhere" : `${style}ly`}`;
}

export function describeLayers(layers: readonly LayerSpec[]): string {
  const [first] = layers;
  if (first === undefined) return "no layers";
  const disk = first.fused ? ", fused on disk" : "";
  const more = layers.length === 1 ? "" : ` and ${layers.length - 1} more`;
  return `${first.kind} ${first.prefix}${disk}${more}`;
}

/** Bytes of every parameter, one after another. */
export function parameterBytes({
  context,
}: LoadedRank): readonly { readonly name: string; readonly bytes: Uint8Array }[] {
  return context.parameters.map(({ name, tensor }) => ({ name, bytes: bytesOf(tensor).slice() }));
}

function same<Value>(value: Value): Value {
  return value;
}
