/**
 * The plan of a model on some ranks: what each will own, what they exchange, and every reason why it would fail, from
 * config.json and the headers of the weight files. No weight is read; without weight files config.json alone will do.
 */
import type { WeightMap } from "../checkpoint/index-file.js";
import type { CollectivePayload } from "../collectives/payload.js";
import type { FloatDType } from "../core/dtype.js";
import { PartitionError } from "../core/errors.js";
import type { JsonObject } from "../core/json.js";
import { type MachineMemory, readMemory, usableBytes } from "../core/machine-memory.js";
import { readTopology } from "../core/machine-topology.js";
import type { KvCacheDType } from "../kernels/kv-cache-dtype.js";
import type { Registries } from "../loading/plugins.js";
import type { ModelConfig, ModelFamily } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import type { Range } from "../parallel/partition.js";
import { type Placement, placeRanks } from "../parallel/placement.js";
import { chooseWorldSize } from "../parallel/world-size.js";
import type { QuantizationChoice } from "../quantization/registry.js";
import { expectedTensors } from "../rank/expected-weights.js";
import { type GroupPlan, planGroup, type StepExchange } from "../rank/group-plan.js";
import type { RankOptions } from "../rank/rank-options.js";
import { type Capacity, type CapacityOptions, defaultKvCacheBytes, LEAST_CAPACITY, planCapacity } from "./capacity.js";
import { type Replicated, replicatedIn, type Uneven, unevenIn } from "./plan-sharing.js";
import { Findings, findSource, type PlanProblem, type PlanSource } from "./plan-source.js";

export type { Replicated, Uneven } from "./plan-sharing.js";
export type { PlanProblem } from "./plan-source.js";

/** Version of the plan's shape: it changes when something is renamed, removed, or comes to mean something else. */
export const PLAN_VERSION = 1;

/** What a plan is made for. */
export interface ModelPlanOptions {
  /** Local path: a directory, a file of weights, or a config.json. */
  readonly path: string;
  /** "auto" leaves it to the machine, and the plan says why. */
  readonly worldSize: number | "auto";
  /** Threads of each rank, and whether they keep to CPUs of their own: as for an engine. */
  readonly threadsPerRank: number | "auto";
  readonly pinning?: boolean | undefined;
  readonly loadFormat?: string | undefined;
  readonly quantization: QuantizationChoice | null;
  readonly dtype: "auto" | FloatDType;
  readonly kvCacheDtype: KvCacheDType;
  readonly collectivePayload: CollectivePayload;
  /** Sizes as for an engine. With `maxModelLength` the KV cache is that of `maxSequences` whole sequences. */
  readonly capacity: CapacityOptions;
  /** Memory that there is for everything. Default: what this machine and this process's control group have. */
  readonly memoryBytes?: number | undefined;
}

/** The same, the number of ranks decided. */
type PlannedOptions = Omit<ModelPlanOptions, "worldSize"> & { readonly worldSize: number };

/** What one rank will own, in bytes where nothing else is said. */
export interface RankPlan {
  readonly rank: number;
  /** Query heads and KV heads of each attention layer; null in a model without. */
  readonly queryHeads: Range | null;
  readonly kvHeads: Range | null;
  /** Rows and columns of each linear layer, in the order of the model. */
  readonly layers: readonly {
    readonly prefix: string;
    readonly rows: number;
    readonly columns: number;
  }[];
  readonly parameterBytes: number;
  /** Of these, bytes that other ranks hold as well. */
  readonly replicatedBytes: number;
  readonly kvCacheBytes: number;
  readonly activationBytes: number;
  readonly totalBytes: number;
}

/** The size of a model, as its config.json has it. */
export type PlannedModel = Pick<
  ModelConfig,
  | "architecture"
  | "layers"
  | "hiddenSize"
  | "heads"
  | "kvHeads"
  | "headSize"
  | "vocabularySize"
  | "maxPositions"
  | "dtype"
>;

/** Plain data, in JSON as it is. */
export interface ModelPlan {
  readonly version: typeof PLAN_VERSION;
  readonly path: string;
  readonly loadFormat: string;
  /** Where shapes come from: the headers of the weight files, or config.json alone. */
  readonly source: "headers" | "config";
  readonly worldSize: number;
  /** The threads that ranks would get on this machine, and where. */
  readonly placement: Placement;
  readonly model: PlannedModel | null;
  readonly quantization: string | null;
  readonly dtype: FloatDType | null;
  readonly kvCacheDtype: KvCacheDType;
  readonly maxModelLength: number | null;
  readonly maxSequences: number | null;
  /** Empty where a problem kept the ranks from being planned. */
  readonly ranks: readonly RankPlan[];
  /** Largest parameter bytes of a rank over the mean of all: 1 is even. */
  readonly imbalance: number | null;
  /** Parameter bytes, what several ranks hold counted once. */
  readonly uniqueBytes: number | null;
  readonly totalBytes: number | null;
  readonly memoryBytes: number;
  readonly replicated: readonly Replicated[];
  readonly uneven: readonly Uneven[];
  readonly decode: StepExchange | null;
  readonly problems: readonly PlanProblem[];
  readonly notes: readonly string[];
}

/** Plans a model. What would keep it from running is in the plan; throws only OptionError, for options that mean nothing. */
export async function planModel(wanted: ModelPlanOptions, registries: Registries): Promise<ModelPlan> {
  const found = new Findings();
  let options: PlannedOptions = { ...wanted, worldSize: wanted.worldSize === "auto" ? 1 : wanted.worldSize };
  const source = await found.awaiting(() => findSource(options, registries, found));
  if (source === undefined) return emptyPlan(options, found);
  const { description, loadFormat } = source;
  const family = found.attempt(() => selectFamily(description.config));
  const quantization = found.attempt(() => registries.quantization.select(description.config, options.quantization));
  const model = family === undefined ? undefined : modelOf(family, description.config, found);
  if (family === undefined || model === undefined) return emptyPlan(options, found, source);
  if (wanted.worldSize === "auto") {
    const { worldSize, reason } = chooseWorldSize(readTopology(), readMemory(), model.kvHeads);
    options = { ...options, worldSize };
    found.notes.push(`ranks chosen by the machine: ${reason}`);
  }
  const capacity = capacityOf(options, model, found);
  if (source.index !== null) checkNames(source.index, expectedNames(family, description.config), found);
  const ranks: RankOptions = {
    path: options.path,
    loadFormat,
    description,
    worldSize: options.worldSize,
    quantization: quantization ?? null,
    dtype: options.dtype === "auto" ? model.dtype : options.dtype,
    kvCacheDtype: options.kvCacheDtype,
    collectivePayload: options.collectivePayload,
    activations: "f32",
    ...(capacity ?? LEAST_CAPACITY),
  };
  const group = await found.awaiting(() => planGroup(ranks, registries));
  const plan = emptyPlan(options, found, source, sizeOf(model));
  const sizes = {
    quantization: quantization?.method ?? null,
    dtype: ranks.dtype,
    maxModelLength: capacity?.maxModelLength ?? null,
    maxSequences: capacity?.limits.maxSequences ?? null,
  };
  if (group === undefined) return { ...plan, ...sizes };
  const planned = groupPlan(group, plan, found);
  if (options.capacity.kvCacheBytes === undefined) checkKvCache(planned.ranks, found);
  return { ...plan, ...sizes, ...planned };
}

/** The config of a model; undefined, with a finding for everything that is wrong in it, where it cannot be used. */
function modelOf(family: ModelFamily, config: JsonObject, found: Findings): ModelConfig | undefined {
  const before = found.problems.length;
  const model = family.parseConfig(config, (error) => found.keep(error));
  return found.problems.length === before ? model : undefined;
}

function expectedNames(family: ModelFamily, config: JsonObject) {
  const names = new Set(expectedTensors(family, config).map(({ name }) => name));
  return { names, ignored: (name: string) => family.ignores(name, config) };
}

/** Holds the names of an index to those that the model's layers take. Weights in a quantized format have names of their own. */
function checkNames(
  index: WeightMap,
  { names, ignored }: ReturnType<typeof expectedNames>,
  { problems, notes }: Findings,
): void {
  const missing = [...names].filter((name) => !index.has(name));
  const [absent] = missing;
  const surplus = [...index.keys()].filter((name) => !names.has(name) && !ignored(name));
  const [unknown] = surplus;
  if (absent === undefined && unknown === undefined) return;
  if (absent === undefined && unknown !== undefined) {
    notes.push(
      `the index names ${surplus.length} tensors beside the weights (${unknown}, ...), as quantized checkpoints do; sizes are those of unquantized weights`,
    );
    return;
  }
  const message = `the index has no ${absent}${missing.length > 1 ? ` and lacks ${missing.length - 1} more` : ""}`;
  problems.push({ code: "MISSING_TENSOR", message });
}

/** The capacity asked for; undefined, with a finding, where it cannot be. A partition that fails is found by the ranks. */
function capacityOf(options: PlannedOptions, model: ModelConfig, found: Findings): Capacity | undefined {
  const { capacity, worldSize, kvCacheDtype } = options;
  const asked = capacity.maxModelLength !== undefined || capacity.maxSequences !== undefined;
  const unlimited = asked && capacity.kvCacheBytes === undefined ? { kvCacheBytes: Number.MAX_SAFE_INTEGER } : {};
  return found.attempt(() => {
    try {
      return planCapacity(model, { ...capacity, ...unlimited }, worldSize, kvCacheDtype);
    } catch (error) {
      if (error instanceof PartitionError) return undefined;
      throw error;
    }
  });
}

function sizeOf(model: ModelConfig): PlannedModel {
  const { architecture, layers, hiddenSize, heads, kvHeads, headSize, vocabularySize, maxPositions, dtype } = model;
  return { architecture, layers, hiddenSize, heads, kvHeads, headSize, vocabularySize, maxPositions, dtype };
}

function emptyPlan(
  options: PlannedOptions,
  { problems, notes }: Findings,
  source?: PlanSource,
  model: PlannedModel | null = null,
): ModelPlan {
  return {
    version: PLAN_VERSION,
    path: options.path,
    loadFormat: source?.loadFormat ?? options.loadFormat ?? "auto",
    source: source?.source ?? "config",
    worldSize: options.worldSize,
    placement: placementOf(options),
    model,
    quantization: null,
    dtype: null,
    kvCacheDtype: options.kvCacheDtype,
    maxModelLength: null,
    maxSequences: null,
    ranks: [],
    imbalance: null,
    uniqueBytes: null,
    totalBytes: null,
    memoryBytes: options.memoryBytes ?? usableBytes(readMemory()),
    replicated: [],
    uneven: [],
    decode: null,
    problems,
    notes,
  };
}

function placementOf({ worldSize: ranks, threadsPerRank, pinning }: PlannedOptions): Placement {
  return placeRanks(readTopology(), { ranks, threadsPerRank, pinning });
}

/** An engine that is told nothing about it takes no more than its default. */
function checkKvCache(ranks: readonly RankPlan[], { notes }: Findings): void {
  const needed = ranks.reduce((sum, { kvCacheBytes }) => sum + kvCacheBytes, 0);
  const most = defaultKvCacheBytes();
  if (needed <= most) return;
  notes.push(
    `a KV cache of ${needed} bytes has to be asked for with kvCacheBytes: by default it takes at most ${most}`,
  );
}

/** Where a rank needs more than the memory of its node has. That runs, and reads the rest from another node's. */
function checkNodes(ranks: readonly RankPlan[], { placement }: ModelPlan, { nodes }: MachineMemory, found: Findings) {
  for (const { id, totalBytes } of nodes) {
    const own = ranks.filter(({ rank }) => placement.places[rank]?.node === id);
    const needed = own.reduce((sum, rank) => sum + rank.totalBytes, 0);
    if (needed <= totalBytes) continue;
    const names = own.map(({ rank }) => rank).join(", ");
    found.notes.push(
      `NUMA node ${id} has ${totalBytes} bytes of memory for the ${needed} of rank ${names}: the rest lies farther away`,
    );
  }
}

function groupPlan({ ownership, decode }: GroupPlan, plan: ModelPlan, found: Findings) {
  const { memoryBytes } = plan;
  const ranks = ownership.ranks.map((rank, i): RankPlan => {
    const { parameterBytes, kvCacheBytes, activationBytes } = rank;
    return {
      rank: rank.rank,
      queryHeads: rank.queryHeads,
      kvHeads: rank.kvHeads,
      layers: rank.layers.map(({ prefix, parts, inputs }) => ({
        prefix,
        rows: parts.reduce((sum, { rows }) => sum + rows.end - rows.start, 0),
        columns: inputs.end - inputs.start,
      })),
      parameterBytes,
      replicatedBytes: ownership.replicatedBytes[i] ?? 0,
      kvCacheBytes,
      activationBytes,
      totalBytes: parameterBytes + kvCacheBytes + activationBytes,
    };
  });
  const totalBytes = ranks.reduce((sum, rank) => sum + rank.totalBytes, 0);
  if (totalBytes > memoryBytes) {
    const message = `all ranks together need ${totalBytes} bytes of memory, but there are ${memoryBytes}`;
    found.problems.push({ code: "OUT_OF_MEMORY", message });
  }
  checkNodes(ranks, plan, readMemory(), found);
  return {
    ranks,
    imbalance: ownership.imbalance,
    uniqueBytes: ownership.uniqueBytes,
    totalBytes,
    replicated: replicatedIn(ownership),
    uneven: unevenIn(ownership),
    decode,
  };
}
