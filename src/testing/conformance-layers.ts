/**
 * The layers that a model's matrices can be made into, and the cuts in which ranks get them. Any matrix can be the weight
 * of a replicated, a column-parallel and a row-parallel layer, whatever it is in its model.
 */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { invariant } from "../core/errors.js";
import { VocabParallelEmbedding } from "../layers/embedding.js";
import type { LayerContext, LinearModule } from "../layers/layer-context.js";
import {
  ColumnParallelLinear,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  ReplicatedLinear,
  RowParallelLinear,
} from "../layers/linear.js";
import type { ModelConfig } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import { cdiv, type HeadRange, headRows, type Split, splitHeads, splitUnits } from "../parallel/partition.js";
import type { LinearLayer } from "../quantization/contract.js";
import { layersWithoutBytes } from "../rank/expected-weights.js";
import type { Preparation } from "./preparation.js";

export type LayerKind = LinearLayer["kind"];

export const LAYER_KINDS: readonly LayerKind[] = ["replicated", "column", "merged", "qkv", "row", "embedding"];

export const MOST_RANKS = 8;

/**
 * How matrices are cut. "even": in as equal parts as the format's own units allow; "uneven": on those units, in parts of
 * very different sizes; "anywhere": at elements that are multiples of nothing. Heads are cut between heads, always.
 */
export interface Cut {
  readonly worldSize: number;
  readonly style: "even" | "uneven" | "anywhere";
}

/** Every world size, and every style at several of them. */
export const CUTS: readonly Cut[] = [
  { worldSize: 2, style: "even" },
  { worldSize: 2, style: "anywhere" },
  { worldSize: 3, style: "uneven" },
  { worldSize: 4, style: "even" },
  { worldSize: 5, style: "anywhere" },
  { worldSize: 6, style: "uneven" },
  { worldSize: 7, style: "even" },
  { worldSize: 8, style: "uneven" },
];

export const WHOLE: Cut = { worldSize: 1, style: "even" };

/** A layer that is to be built in some cut. */
export interface LayerSpec {
  readonly kind: LayerKind;
  readonly prefix: string;
  /** Names of the modules on disk, and their rows. */
  readonly parts: readonly { readonly prefix: string; readonly outputs: number }[];
  readonly inputs: number;
  /** One tensor on disk holds all parts. */
  readonly fused: boolean;
  /** Its outputs are the logits; absent where they are not. */
  readonly isHead?: boolean;
  /** Whether so many ranks can share the layer. */
  fits(cut: Cut): boolean;
  /** Whether every boundary of a cut is one at which the format says it can be cut. */
  aligned(cut: Cut): boolean;
  build(context: LayerContext, cut: Cut): LinearModule;
}

export interface Units {
  readonly outputs: number;
  readonly inputs: number;
}

/** The layers of one kind that a model's matrices can be made into. */
export function layersOf(
  preparation: Preparation,
  checkpoint: Checkpoint,
  units: Units,
  kind: LayerKind,
): readonly LayerSpec[] {
  const json = preparation.ranks.description.config;
  const family = selectFamily(json);
  const config = family.parseConfig(json);
  const found = layersWithoutBytes(family, json).linears.map(({ layer }) => layer);
  const fused = (layer: LinearLayer): boolean => layer.parts.length > 1 && isFused(layer, checkpoint);
  switch (kind) {
    case "replicated":
    case "column":
    case "row":
      return found
        .filter((layer) => layer.kind !== "embedding")
        .flatMap((layer) => matricesOf(layer, fused(layer)))
        .map((matrix) => matrixLayer(kind, matrix, units));
    case "embedding":
      return found.filter((layer) => layer.kind === kind).map((layer) => embeddingLayer(layer, units));
    case "merged":
      return found.filter((layer) => layer.kind === kind).map((layer) => mergedLayer(layer, fused(layer), units));
    case "qkv":
      return found.filter((layer) => layer.kind === kind).map((layer) => qkvLayer(layer, fused(layer), units, config));
  }
}

/** Whether what is on disk has the layer's name rather than those of its parts. */
function isFused({ prefix, parts }: LinearLayer, { tensors }: Checkpoint): boolean {
  const names = [...tensors.keys()];
  const has = (module: string): boolean => names.some((name) => name.startsWith(`${module}.`));
  return has(prefix) && !parts.some((part) => has(part.prefix));
}

interface Matrix {
  readonly prefix: string;
  readonly isHead: boolean;
  readonly outputs: number;
  readonly inputs: number;
}

function matricesOf(layer: LinearLayer, fused: boolean): readonly Matrix[] {
  const { prefix, parts, inputSize: inputs, isHead = false } = layer;
  if (fused) return [{ prefix, isHead, outputs: parts.reduce((sum, part) => sum + part.outputSize, 0), inputs }];
  return parts.map((part) => ({ prefix: part.prefix, isHead, outputs: part.outputSize, inputs }));
}

function matrixLayer(kind: "replicated" | "column" | "row", matrix: Matrix, units: Units): LayerSpec {
  const { prefix, isHead, outputs, inputs } = matrix;
  const [extent, unit] = kind === "row" ? [inputs, units.inputs] : [outputs, units.outputs];
  const options = { prefix, isHead, inputSize: inputs, outputSize: outputs };
  return {
    kind,
    prefix,
    isHead,
    parts: [{ prefix, outputs }],
    inputs,
    fused: false,
    fits: (cut) => kind === "replicated" || splitBy(extent, unit, cut) !== null,
    aligned: (cut) => kind === "replicated" || isAligned(splitBy(extent, unit, cut), unit, 0),
    build(context, cut) {
      if (kind === "replicated") return new ReplicatedLinear(context, options);
      const split = fitting(splitBy(extent, unit, cut));
      return kind === "row"
        ? new RowParallelLinear(context, { ...options, split })
        : new ColumnParallelLinear(context, { ...options, split });
    },
  };
}

function embeddingLayer({ prefix, parts, inputSize, isHead = false }: LinearLayer, units: Units): LayerSpec {
  const outputs = parts[0]?.outputSize ?? 0;
  const split = (cut: Cut): Split | null => splitBy(outputs, units.outputs, cut);
  return {
    kind: "embedding",
    prefix,
    isHead,
    parts: [{ prefix, outputs }],
    inputs: inputSize,
    fused: false,
    fits: (cut) => split(cut) !== null,
    aligned: (cut) => isAligned(split(cut), units.outputs, 0),
    build: (context, cut) => {
      const vocabulary = fitting(split(cut));
      return new VocabParallelEmbedding(context, {
        prefix,
        isHead,
        vocabularySize: outputs,
        hiddenSize: inputSize,
        vocabulary,
      });
    },
  };
}

function mergedLayer(layer: LinearLayer, fused: boolean, units: Units): LayerSpec {
  const { prefix, inputSize } = layer;
  const parts = partsOf(layer);
  const splits = (cut: Cut): (Split | null)[] => parts.map(({ outputs }) => splitBy(outputs, units.outputs, cut));
  return {
    kind: "merged",
    prefix,
    parts,
    inputs: inputSize,
    fused,
    fits: (cut) => splits(cut).every((split) => split !== null),
    aligned: (cut) => splits(cut).every((split, i) => isAligned(split, units.outputs, baseOf(parts, i, fused))),
    build(context, cut) {
      const cuts = splits(cut);
      return new MergedColumnParallelLinear(context, {
        prefix,
        inputSize,
        parts: parts.map((part, i) => {
          return { prefix: part.prefix, outputSize: part.outputs, split: fitting(cuts[i] ?? null) };
        }),
      });
    },
  };
}

function qkvLayer(layer: LinearLayer, fused: boolean, units: Units, config: ModelConfig): LayerSpec {
  const { prefix, inputSize } = layer;
  const parts = partsOf(layer);
  const [q, k, v] = parts;
  invariant(q !== undefined && k !== undefined && v !== undefined, `${prefix} has no queries, keys and values`);
  const { heads: totalHeads, kvHeads: totalKvHeads, headSize } = config;
  const headsOf = (cut: Cut): readonly HeadRange[] | null => cutHeads(totalHeads, totalKvHeads, cut);
  return {
    kind: "qkv",
    prefix,
    parts,
    inputs: inputSize,
    fused,
    fits: (cut) => headsOf(cut) !== null,
    aligned(cut) {
      const heads = headsOf(cut) ?? [];
      const query = headRows(heads, "queryHeads", headSize);
      const kv = headRows(heads, "kvHeads", headSize);
      return [query, kv, kv].every((split, i) => isAligned(split, units.outputs, baseOf(parts, i, fused)));
    },
    build(context, cut) {
      const heads = headsOf(cut);
      invariant(heads !== null, `${prefix} does not fit ${cut.worldSize} ranks`);
      const names = { q: q.prefix, k: k.prefix, v: v.prefix };
      return new QKVParallelLinear(context, {
        prefix,
        inputSize,
        headSize,
        totalHeads,
        totalKvHeads,
        heads,
        names,
      });
    },
  };
}

function partsOf({ parts }: LinearLayer): LayerSpec["parts"] {
  return parts.map(({ prefix, outputSize }) => ({ prefix, outputs: outputSize }));
}

/** Row at which a part begins in the tensor that holds it. */
function baseOf(parts: LayerSpec["parts"], index: number, fused: boolean): number {
  return fused ? parts.slice(0, index).reduce((sum, { outputs }) => sum + outputs, 0) : 0;
}

/** One range a rank, none of them empty; null where there is too little for so many ranks. */
export function splitBy(extent: number, unit: number, { worldSize, style }: Cut): Split | null {
  const step = style === "anywhere" ? 1 : unit;
  const units = cdiv(extent, step);
  if (units < worldSize) return null;
  if (style === "even") return splitUnits(extent, step, worldSize, "a matrix");
  const spare = units - worldSize;
  let last = 0;
  const ends = Array.from({ length: worldSize }, (_, i) => {
    const rank = i + 1;
    if (rank === worldSize) return extent;
    // Sizes grow from rank to rank; or boundaries are odd as far as there is room.
    const wanted =
      style === "uneven"
        ? rank + Math.floor(spare * (rank / worldSize) ** 2)
        : Math.floor((extent * rank) / worldSize) | 1;
    last = Math.max(last + 1, Math.min(wanted, units - worldSize + rank));
    return last * step;
  });
  return ends.map((end, i) => ({ start: ends[i - 1] ?? 0, end }));
}

/** Query heads by a cut, and with each rank the KV heads that they read. */
function cutHeads(heads: number, kvHeads: number, cut: Cut): readonly HeadRange[] | null {
  if (cut.worldSize > heads) return null;
  if (cut.style === "even") return splitHeads(heads, kvHeads, cut.worldSize);
  const split = splitBy(heads, 1, cut) ?? [];
  return split.map((queryHeads) => {
    const kv = {
      start: Math.floor((queryHeads.start * kvHeads) / heads),
      end: cdiv(queryHeads.end * kvHeads, heads),
    };
    const kvHeadOf = Array.from({ length: queryHeads.end - queryHeads.start }, (_, i) => {
      return Math.floor(((queryHeads.start + i) * kvHeads) / heads) - kv.start;
    });
    return { queryHeads, kvHeads: kv, kvHeadOf };
  });
}

/** Whether ranges begin and end at multiples of `unit` of the tensor in which they begin at `base`. */
function isAligned(split: Split | null, unit: number, base: number): boolean {
  const extent = Math.max(0, ...(split ?? []).map(({ end }) => end));
  return (split ?? []).every(({ start, end }) => {
    return (base + start) % unit === 0 && ((base + end) % unit === 0 || (end === extent && base === 0));
  });
}

function fitting(split: Split | null): Split {
  invariant(split !== null, "a layer was built in a cut that does not fit it");
  return split;
}
