/** Decides what a quantized checkpoint consists of: which tensors, in which files, at which places, made by which tasks. */
import type { CheckpointTensor } from "../checkpoint/checkpoint.js";
import { type FileLayout, layOutFile, type TensorSpec } from "../checkpoint/safetensors-layout.js";
import { isDType } from "../core/dtype.js";
import { describeValue, PluginError } from "../core/errors.js";
import type { CheckpointQuantizationPlan, QuantizedTensor } from "../quantization/checkpoint-quantizer.js";
import { callHook } from "../quantization/registry.js";
import { bytesOf, type CheckpointTask, MAX_DEFERRED_BYTES } from "./checkpoint-task.js";

export interface CheckpointPlanRequest {
  /** Tensors of the source, in the order in which the new checkpoint is to have them; dtypes already converted. */
  readonly tensors: Iterable<CheckpointTensor>;
  /** Names of linear modules: their weights are offered to the format. */
  readonly modules: readonly string[];
  readonly plan: CheckpointQuantizationPlan;
  /** Package of the format. */
  readonly owner: string;
  /** The most bytes of tensors in one file, unless one tensor and what belongs to it has more. */
  readonly maxShardBytes: number;
}

export interface PlannedFile {
  readonly name: string;
  readonly layout: FileLayout;
  /** Tensors whose shape is not known yet, with the largest they may have. */
  readonly deferred: readonly TensorSpec[];
}

export interface PlannedCheckpoint {
  readonly files: readonly PlannedFile[];
  /** The largest first, so that no thread is left alone with one at the end. */
  readonly tasks: readonly PlannedTask[];
  /** Names of the weights that are quantized. */
  readonly quantized: readonly string[];
  /** The most bytes that all files may have. */
  readonly sizeBytes: number;
}

/** A task, but for the folder of its file, which is made only when everything is planned. */
export interface PlannedTask extends Omit<CheckpointTask, "file"> {
  readonly fileName: string;
  /** Bytes of the source. */
  readonly sourceBytes: number;
}

/** What comes of one tensor of the source; stays together in one file. */
interface Group {
  readonly source: CheckpointTensor;
  readonly quantize: boolean;
  readonly outputs: readonly QuantizedTensor[];
  readonly sizeBytes: number;
}

/** Reads no weights. Throws what the format throws, or PluginError `INVALID_CHECKPOINT_QUANTIZER` for tensors that cannot be. */
export function planCheckpoint(request: CheckpointPlanRequest): PlannedCheckpoint {
  const groups = groupsOf(request);
  checkNames(groups, request.owner);
  const shards = shardsOf(groups, request.maxShardBytes);
  const planned = shards.map((shard, i) => planFile(shard, fileName(i, shards.length)));
  const files = planned.map(({ file }) => file);
  return {
    files,
    tasks: planned.flatMap(({ tasks }) => tasks).sort((a, b) => b.sourceBytes - a.sourceBytes),
    quantized: groups.filter(({ quantize }) => quantize).map(({ source }) => source.name),
    sizeBytes: files.reduce((sum, { layout, deferred }) => {
      return sum + layout.dataStart + layout.dataBytes + deferred.reduce((bytes, each) => bytes + bytesOf(each), 0);
    }, 0),
  };
}

function groupsOf({ tensors, modules, plan, owner }: CheckpointPlanRequest): readonly Group[] {
  const weights = new Set(modules.map((module) => `${module}.weight`));
  return Array.from(tensors, (source) => {
    const replaced = weights.has(source.name)
      ? callHook(owner, `replacing ${source.name}`, () => checked(plan.replace(source), source, owner))
      : null;
    const outputs = replaced ?? [source];
    const sizeBytes = outputs.reduce((sum, each) => sum + bytesOf(each), 0);
    return { source, quantize: replaced !== null, outputs, sizeBytes };
  });
}

function planFile(
  groups: readonly Group[],
  name: string,
): { readonly file: PlannedFile; readonly tasks: readonly PlannedTask[] } {
  const outputs = groups.flatMap((group) => group.outputs);
  const spec = ({ name, dtype, shape }: QuantizedTensor): TensorSpec => ({ name, dtype, shape });
  const deferred = outputs.filter(isDeferred).map(spec);
  const layout = layOutFile(outputs.filter((each) => !isDeferred(each)).map(spec), deferred);
  const places = new Map(layout.entries.map(({ name, begin }) => [name, layout.dataStart + begin]));
  const tasks = groups.map(({ source, quantize, outputs }) => ({
    tensor: source.name,
    quantize,
    fileName: name,
    sourceBytes: bytesOf(source),
    outputs: outputs.map((each) => ({ ...spec(each), position: places.get(each.name) ?? null })),
  }));
  return { file: { name, layout, deferred }, tasks };
}

function isDeferred({ settledShape }: QuantizedTensor): boolean {
  return settledShape !== undefined;
}

/** Fills files in order; a group that is larger than a file may be has one of its own. */
function shardsOf(groups: readonly Group[], maxBytes: number): readonly (readonly Group[])[] {
  const shards: Group[][] = [];
  let sizeBytes = Number.POSITIVE_INFINITY;
  for (const group of groups) {
    if (sizeBytes + group.sizeBytes > maxBytes) {
      shards.push([]);
      sizeBytes = 0;
    }
    shards.at(-1)?.push(group);
    sizeBytes += group.sizeBytes;
  }
  return shards;
}

/** Names as transformers gives them. */
function fileName(index: number, count: number): string {
  if (count === 1) return "model.safetensors";
  const number = (value: number): string => String(value).padStart(5, "0");
  return `model-${number(index + 1)}-of-${number(count)}.safetensors`;
}

function checkNames(groups: readonly Group[], owner: string): void {
  const names = new Set<string>();
  for (const { source, outputs } of groups) {
    for (const { name } of outputs) {
      if (names.has(name)) throw invalid(owner, source, "names that no other tensor has", name);
      names.add(name);
    }
  }
}

/** What a plugin in plain JavaScript names may be anything. */
function checked(
  tensors: readonly QuantizedTensor[] | null,
  source: CheckpointTensor,
  owner: string,
): readonly QuantizedTensor[] | null {
  if (tensors === null) return null;
  if (!Array.isArray(tensors) || tensors.length === 0) {
    throw invalid(owner, source, "a list of tensors or null", describeValue(tensors));
  }
  for (const { name, dtype, shape, settledShape } of tensors) {
    const sized = Array.isArray(shape) && shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0);
    if (typeof name !== "string" || !isDType(dtype) || !sized) {
      throw invalid(owner, source, "tensors with name, dtype and shape", `${name}, ${dtype}, ${describeValue(shape)}`);
    }
    const mostBytes = settledShape === undefined ? Number.MAX_SAFE_INTEGER : MAX_DEFERRED_BYTES;
    const sizeBytes = bytesOf({ dtype, shape });
    if (sizeBytes > mostBytes) throw invalid(owner, source, `${name} to have at most ${mostBytes} bytes`, sizeBytes);
  }
  return tensors;
}

function invalid(owner: string, { name }: CheckpointTensor, expected: string, received: string | number): PluginError {
  return new PluginError(
    "INVALID_CHECKPOINT_QUANTIZER",
    `${owner}: expected ${expected} in the place of ${name} but received ${received}`,
    { plugin: owner, tensor: name, expected, received },
  );
}
