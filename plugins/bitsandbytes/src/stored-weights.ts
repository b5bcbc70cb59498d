/** Finds the quantized weights of a checkpoint: sidecars are matched to weights by name, and what does not match is an error. */
import type { Checkpoint, CheckpointTensor, ReadGroup } from "shardloom/plugin";
import { describeTensor, invalid } from "./checkpoint-error.js";
import { STATE_PREFIX } from "./quant-state.js";
import type { QuantizedWeight, TableSlot } from "./quantized-weight.js";
import { FOUR_BIT_SIDECARS, type FourBitParts, openFourBit } from "./stored-4bit.js";
import { type EightBitParts, openEightBit } from "./stored-int8.js";

/** What is quantized on disk. */
export interface StoredWeights {
  /** By the name of the weight. */
  readonly weights: ReadonlyMap<string, QuantizedWeight>;
  /** Names that mean nothing without their weight. */
  readonly sidecars: ReadonlySet<string>;
}

const WEIGHT = ".weight";
const SCALES = ".SCB";
const FORMAT = ".weight_format";
const ANY_STATE = ".quant_state.";

/** Sidecars by the name of the weight they belong to. */
interface Sidecars {
  readonly fourBit: Map<string, FourBitParts>;
  readonly eightBit: Map<string, EightBitParts>;
  readonly names: Set<string>;
}

/**
 * Reads what is needed to know which weights are quantized, and how: some hundred bytes a weight. Throws CheckpointError
 * `ORPHAN_QUANT_STATE` for a sidecar without its weight, `MISSING_QUANT_STATE` for a weight without its sidecars, and what
 * opening a weight throws.
 */
export function findStoredWeights(checkpoint: Checkpoint, slot: TableSlot, group?: ReadGroup): StoredWeights {
  const { fourBit, eightBit, names } = collectSidecars(checkpoint);
  const weights = new Map<string, QuantizedWeight>();
  for (const [name, parts] of fourBit) {
    const first = parts.states[0] ?? [...parts.sidecars.values()][0];
    if (eightBit.has(name) && first !== undefined) {
      throw invalid("INVALID_QUANT_STATE", first, `${name} to be quantized in one way`, "4-bit and int8 sidecars");
    }
    weights.set(name, openFourBit(weightOf(checkpoint, name, first), parts, slot, group));
  }
  for (const [name, parts] of eightBit) {
    weights.set(name, openEightBit(weightOf(checkpoint, name, parts.scales ?? parts.format), parts));
  }
  for (const tensor of checkpoint.tensors.values()) {
    if (weights.has(tensor.name) || names.has(tensor.name)) continue;
    if (tensor.name.endsWith(WEIGHT) && (tensor.dtype === "u8" || tensor.dtype === "i8")) {
      const expected = tensor.dtype === "u8" ? `${tensor.name}.absmax and others` : "the scales of its rows (SCB)";
      throw invalid("MISSING_QUANT_STATE", tensor, `${expected} beside ${describeTensor(tensor)}`, "none");
    }
  }
  return { weights, sidecars: names };
}

function weightOf(
  checkpoint: Checkpoint,
  name: string,
  sidecar: CheckpointTensor | null | undefined,
): CheckpointTensor {
  const weight = checkpoint.tensors.get(name);
  if (weight !== undefined) return weight;
  throw invalid("ORPHAN_QUANT_STATE", sidecar ?? { name, file: "" }, `the weight ${name} that it belongs to`, "none");
}

function collectSidecars(checkpoint: Checkpoint): Sidecars {
  const found: Sidecars = { fourBit: new Map(), eightBit: new Map(), names: new Set() };
  for (const tensor of checkpoint.tensors.values()) {
    if (addFourBit(found, tensor) || addEightBit(found, tensor)) found.names.add(tensor.name);
  }
  return found;
}

function addFourBit({ fourBit }: Sidecars, tensor: CheckpointTensor): boolean {
  const { name } = tensor;
  const partsOf = (weight: string): FourBitParts => entry(fourBit, weight, { sidecars: new Map(), states: [] });
  const state = name.lastIndexOf(ANY_STATE);
  if (state >= 0) {
    if (!name.startsWith(STATE_PREFIX, state + 1)) {
      throw invalid("INVALID_QUANT_STATE", tensor, `a name that goes on with ${STATE_PREFIX}`, name.slice(state + 1));
    }
    partsOf(name.slice(0, state)).states.push(tensor);
    return true;
  }
  const key = FOUR_BIT_SIDECARS.find((known) => name.endsWith(`.${known}`));
  if (key === undefined) return false;
  partsOf(name.slice(0, -key.length - 1)).sidecars.set(key, tensor);
  return true;
}

function addEightBit({ eightBit }: Sidecars, tensor: CheckpointTensor): boolean {
  const { name } = tensor;
  const partsOf = (module: string): EightBitParts => {
    return entry(eightBit, `${module}${WEIGHT}`, { scales: null, format: null });
  };
  if (name.endsWith(SCALES)) partsOf(name.slice(0, -SCALES.length)).scales = tensor;
  else if (name.endsWith(FORMAT)) partsOf(name.slice(0, -FORMAT.length)).format = tensor;
  else return false;
  return true;
}

function entry<Value>(map: Map<string, Value>, key: string, initial: Value): Value {
  const existing = map.get(key);
  if (existing !== undefined) return existing;
  map.set(key, initial);
  return initial;
}
