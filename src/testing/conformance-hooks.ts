/** How a plugin behaves towards its host: what it asks for, what it leaves alone, and that it does the same every time. */
import { isDeepStrictEqual } from "node:util";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { dtypeBytes } from "../core/dtype.js";
import { elementCount } from "../core/tensor.js";
import type {
  LinearMethod,
  OriginalOffsets,
  QuantizationConfig,
  ShardIndexer,
  ShardIndexQuery,
} from "../quantization/contract.js";
import { SimulationAssertionError } from "./assertion-error.js";
import { firstDifference } from "./conformance-arithmetic.js";
import type { PluginCheck } from "./conformance-check.js";
import type { Subject } from "./conformance-fixture.js";
import { findLayers } from "./conformance-kinds.js";
import { type Cut, LAYER_KINDS, type LayerKind, WHOLE } from "./conformance-layers.js";
import { describeCut, loadRank, loadRanks, parameterBytes, within } from "./conformance-load.js";
import { shardValues } from "./conformance-values.js";
import { PlacementRecorder } from "./placement-recorder.js";

const SHARED: Cut = { worldSize: 2, style: "even" };

export function hookChecks(subject: Subject): readonly PluginCheck[] {
  const kinds = LAYER_KINDS.filter((kind) => !subject.skips(kind));
  const check = (what: string, run: () => Promise<void>): PluginCheck => ({ name: `${subject.name}: ${what}`, run });
  return [
    check("settings, options and layers are left as they are", () => checkFrozen(subject, kinds)),
    check("tensors read the same after loading as before", () => checkRepeatedReads(subject, kinds)),
    check("original offsets are asked for only by a shard indexer that uses them, once a layer", () => {
      return checkOffsets(subject, kinds);
    }),
    check("loaded again it holds the same bits", () => checkDeterminism(subject, kinds)),
  ];
}

/** Layers of a kind in the cut; those that do not fit it are left out. */
async function fittingLayers(subject: Subject, kind: LayerKind, cut: Cut) {
  const { preparation, layers } = await findLayers(subject, kind);
  return { preparation, layers: layers.filter((layer) => layer.fits(cut) && layer.aligned(cut)) };
}

async function checkFrozen(subject: Subject, kinds: readonly LayerKind[]): Promise<void> {
  for (const kind of kinds) {
    const { preparation, layers } = await fittingLayers(subject, kind, SHARED);
    const { description, quantization } = preparation.ranks;
    const before = structuredClone({ config: description.config, quantization });
    deepFreeze(description.config);
    deepFreeze(quantization);
    await loadRanks(preparation, { cut: SHARED, layers, watch: freezingLayers });
    // What is not a plain object cannot be frozen through and through.
    if (isDeepStrictEqual(before, { config: description.config, quantization })) continue;
    throw new SimulationAssertionError("expected the settings and options to be left alone but they have changed", {
      expected: before,
      received: { config: description.config, quantization },
    });
  }
}

function freezingLayers(config: QuantizationConfig): QuantizationConfig {
  return {
    name: config.name,
    linearMethod(layer) {
      deepFreeze(layer);
      return config.linearMethod(layer);
    },
  };
}

/** Plain data only: whatever else it may hold stays as it is. */
function deepFreeze(value: unknown): void {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value) || Object.isFrozen(value)) return;
  Object.freeze(value);
  for (const inner of Object.values(value)) deepFreeze(inner);
}

async function checkRepeatedReads(subject: Subject, kinds: readonly LayerKind[]): Promise<void> {
  const [kind = "replicated"] = kinds;
  const { preparation, layers } = await fittingLayers(subject, kind, WHOLE);
  let before: ReadonlyMap<string, Uint8Array> = new Map();
  await within(`${subject.name}, loaded with its checkpoint held open`, {}, () =>
    loadRank(preparation, {
      rank: 0,
      cut: WHOLE,
      layers,
      alter(checkpoint) {
        before = readAll(checkpoint);
        return checkpoint;
      },
      whileOpen: (checkpoint) => compareReads(before, readAll(checkpoint)),
    }),
  );
}

function readAll({ tensors }: Checkpoint): ReadonlyMap<string, Uint8Array> {
  const contents = [...tensors].map(([name, tensor]) => {
    const bytes = new Uint8Array(elementCount(tensor.shape) * dtypeBytes(tensor.dtype));
    tensor.read(bytes, 0);
    return [name, bytes] as const;
  });
  return new Map(contents);
}

function compareReads(before: ReadonlyMap<string, Uint8Array>, after: ReadonlyMap<string, Uint8Array>): void {
  for (const [name, bytes] of before) {
    const byte = firstDifference(bytes, after.get(name) ?? new Uint8Array());
    if (byte < 0) continue;
    throw new SimulationAssertionError(
      `${name}: expected the same bytes as before loading but byte ${byte} is another: ${after.get(name)?.[byte]} ` +
        `instead of ${bytes[byte]}`,
      { tensor: name, index: [byte], expected: bytes[byte], received: after.get(name)?.[byte] },
    );
  }
}

/** A question to an indexer that asked for the original offsets to answer it. */
interface Asking {
  readonly layer: string;
  readonly query: ShardIndexQuery;
  /** Whether another answer is given for other offsets. */
  readonly uses: boolean;
}

async function checkOffsets(subject: Subject, kinds: readonly LayerKind[]): Promise<void> {
  for (const kind of kinds) {
    const { preparation, layers } = await fittingLayers(subject, kind, SHARED);
    if (layers.length === 0) continue;
    const recorder = new PlacementRecorder();
    const asking: Asking[] = [];
    const watch = (config: QuantizationConfig): QuantizationConfig => watchIndexers(config, asking);
    await loadRanks(preparation, { cut: SHARED, layers, watch, observer: recorder.observer });
    checkComputedOnce(recorder);
    for (const { layer, query } of asking) {
      if (asking.some((other) => other.layer === layer && other.query.rank === query.rank && other.uses)) continue;
      throw new SimulationAssertionError(
        `${describeCut(SHARED)}: the shard indexer of ${layer}, rank ${query.rank}, shard ${query.shardId}, asks for the ` +
          "original offsets: expected an answer that depends on them but it is the same for others; they cost every load " +
          "of every layer",
        { layer, rank: query.rank, shardId: query.shardId, expected: "not asked for", received: "asked for" },
      );
    }
  }
}

function checkComputedOnce({ offsetComputations, indexerCalls }: PlacementRecorder): void {
  const seen = new Set<string>();
  for (const { rank, layer, scope } of offsetComputations) {
    const key = `${rank} ${layer} ${scope}`;
    const indexed = indexerCalls.some((call) => call.rank === rank && call.parameter.startsWith(`${layer}.`));
    if (indexed && !seen.has(key)) {
      seen.add(key);
      continue;
    }
    const expected = indexed ? "one computation" : "none: no parameter of it has a shard indexer";
    throw new SimulationAssertionError(`original offsets of ${layer} on rank ${rank}: expected ${expected}`, {
      layer,
      rank,
      expected,
      received: "another one",
    });
  }
}

function watchIndexers(config: QuantizationConfig, asking: Asking[]): QuantizationConfig {
  return {
    name: config.name,
    linearMethod(layer) {
      const method = config.linearMethod(layer);
      if (method === null) return null;
      const create: LinearMethod["createWeights"] = (creation, own) => {
        method.createWeights(
          {
            addParameter(spec) {
              const { shardIndexer } = spec;
              creation.addParameter(
                shardIndexer === undefined
                  ? spec
                  : { ...spec, shardIndexer: watchIndexer(shardIndexer, layer.prefix, asking) },
              );
            },
          },
          own,
        );
      };
      // The method itself but for one hook: it may have private members.
      return new Proxy(method, {
        get(target, key) {
          if (key === "createWeights") return create;
          const value: unknown = Reflect.get(target, key, target);
          return typeof value === "function" ? value.bind(target) : value;
        },
      });
    },
  };
}

function watchIndexer(indexer: ShardIndexer, layer: string, asking: Asking[]): ShardIndexer {
  return (query) => {
    let asked = false;
    const answer = indexer({
      ...query,
      originalOffsets() {
        asked = true;
        return query.originalOffsets();
      },
    });
    const again = indexer(query);
    if (!isDeepStrictEqual(answer, again)) {
      throw new SimulationAssertionError(
        `the shard indexer of ${layer}, rank ${query.rank}, shard ${query.shardId}: expected the same answer to the same ` +
          `question, ${JSON.stringify(answer)}, but received ${JSON.stringify(again)}`,
        { layer, rank: query.rank, shardId: query.shardId, expected: answer, received: again },
      );
    }
    if (asked) asking.push({ layer, query, uses: dependsOnOffsets(indexer, query, answer) });
    return answer;
  };
}

/** Whether other offsets, or none, would have changed an answer. */
function dependsOnOffsets(indexer: ShardIndexer, query: ShardIndexQuery, answer: unknown): boolean {
  try {
    return !isDeepStrictEqual(indexer({ ...query, originalOffsets: () => skewed(query.originalOffsets()) }), answer);
  } catch {
    return true;
  }
}

/** Other offsets, in other proportions. */
function skewed(offsets: OriginalOffsets): OriginalOffsets {
  const entries = [...offsets].map(([id, { offset, size }], i) => {
    return [id, { offset: 3 * offset + i + 1, size: 2 * size + i }] as const;
  });
  return new Map(entries);
}

async function checkDeterminism(subject: Subject, kinds: readonly LayerKind[]): Promise<void> {
  for (const kind of kinds) {
    const first = await loadShared(subject, kind, [0, 1]);
    // Ranks may load in any order, and another engine may have loaded before.
    const second = await loadShared(subject, kind, [1, 0]);
    for (const [name, bytes] of first) {
      const byte = firstDifference(bytes, second.get(name) ?? new Uint8Array());
      if (byte < 0) continue;
      throw new SimulationAssertionError(
        `${kind} layers, ${name}, loaded again, rank 1 before rank 0: expected the same bytes but byte ${byte} is another: ` +
          `${second.get(name)?.[byte]} instead of ${bytes[byte]}`,
        { tensor: name, index: [byte], expected: bytes[byte], received: second.get(name)?.[byte] },
      );
    }
  }
}

/** Bytes of all parameters, and of all values that layers multiply with, of two ranks. */
async function loadShared(
  subject: Subject,
  kind: LayerKind,
  order: readonly number[],
): Promise<ReadonlyMap<string, Uint8Array>> {
  const { preparation, layers } = await fittingLayers(subject, kind, SHARED);
  const contents = new Map<string, Uint8Array>();
  for (const rank of order) {
    const loaded = await within(`${describeCut(SHARED)}, rank ${rank}`, { rank }, () => {
      return loadRank(preparation, { rank, cut: SHARED, layers });
    });
    for (const { name, bytes } of parameterBytes(loaded)) contents.set(`${name} on rank ${rank}`, bytes);
    for (const module of loaded.linears) {
      const values = await shardValues(module);
      const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      contents.set(`the values of ${module.layer.prefix} on rank ${rank}`, bytes);
    }
  }
  return contents;
}
