/**
 * What the thread of a checkpoint task does: it takes one tensor of a checkpoint at a time, lets a format quantize it, and
 * writes what comes of it to its place in a new checkpoint. Which place that is has been decided before (safetensors-layout.ts).
 * Bytes go from file to file through one buffer; besides it the thread holds only what the format keeps of a tensor.
 */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { convertedTensor } from "../checkpoint/converted-tensor.js";
import { OutputFile } from "../checkpoint/output-file.js";
import type { TensorSpec } from "../checkpoint/safetensors-layout.js";
import { dtypeBytes, type FloatDType } from "../core/dtype.js";
import { invariant, PluginError, type TransferableError, toTransferable } from "../core/errors.js";
import { elementCount, shapesEqual } from "../core/tensor.js";
import type {
  CheckpointQuantizationPlan,
  CheckpointQuantizationRequest,
  QuantizedTensor,
} from "../quantization/checkpoint-quantizer.js";
import { callHook } from "../quantization/registry.js";
import { loadPlugins } from "./plugins.js";

/** What all tasks of a checkpoint have in common. Plain data: `workerData` of their threads. */
export interface CheckpointTaskSetup {
  /** Local path of the model. */
  readonly path: string;
  /** Format of its loader. */
  readonly loadFormat: string;
  /** File URLs of the plugins to load, in order. */
  readonly plugins: readonly string[];
  /** Format to quantize into. */
  readonly format: string;
  readonly request: CheckpointQuantizationRequest;
  /** dtype that weights are converted to before all else; null to take them as they are. */
  readonly dtype: FloatDType | null;
}

/** A tensor to be written. */
export interface TaskOutput extends TensorSpec {
  /** First byte in the file; null for a deferred tensor, whose bytes go back to whoever gave the task. */
  readonly position: number | null;
}

/** One tensor of the source, and what is to come of it. Plain data. */
export interface CheckpointTask {
  readonly tensor: string;
  /** Whether the format is asked for what takes its place. */
  readonly quantize: boolean;
  /** The file to write, which exists. */
  readonly file: string;
  /** In the order in which the format names them. */
  readonly outputs: readonly TaskOutput[];
}

/** A tensor whose size was not known before. */
export interface DeferredTensor extends TensorSpec {
  readonly bytes: Uint8Array;
}

/** What came of a task. Errors are values: a thread pool's own would lose their class, code and fields. */
export type CheckpointTaskOutcome =
  /** The tensors that were not written. */
  | { readonly ok: true; readonly result: readonly DeferredTensor[] }
  | { readonly ok: false; readonly error: TransferableError };

/** Bytes read and written at a time: blocks and rows that straddle two pieces are quantized twice. */
const PIECE_BYTES = 1 << 20;

/** The most that may come back instead of being written. */
export const MAX_DEFERRED_BYTES = 1 << 16;

/** Carries tasks out, one after another. Nothing is opened before the first; errors of any kind are outcomes. */
export function createCheckpointTaskRunner(
  setup: CheckpointTaskSetup,
): (task: CheckpointTask) => Promise<CheckpointTaskOutcome> {
  let opened: Promise<Opened> | undefined;
  return async (task) => {
    try {
      opened ??= open(setup);
      return { ok: true, result: carryOut(task, await opened) };
    } catch (error) {
      return { ok: false, error: toTransferable(error) };
    }
  };
}

interface Opened {
  readonly checkpoint: Checkpoint;
  readonly plan: CheckpointQuantizationPlan;
  /** Package of the format. */
  readonly owner: string;
  readonly dtype: FloatDType | null;
  readonly piece: Uint8Array;
}

async function open({ path, loadFormat, plugins, format, request, dtype }: CheckpointTaskSetup): Promise<Opened> {
  const { modelLoaders, checkpointQuantizers } = await loadPlugins(plugins);
  const { quantizer, owner } = checkpointQuantizers.select(format);
  const plan = callHook(owner, `planning ${format}`, () => quantizer.plan(request));
  const checkpoint = await modelLoaders.select(path, loadFormat).open(path);
  return { checkpoint, plan, owner, dtype, piece: new Uint8Array(PIECE_BYTES) };
}

function carryOut(task: CheckpointTask, { checkpoint, plan, owner, dtype, piece }: Opened): readonly DeferredTensor[] {
  const stored = checkpoint.tensors.get(task.tensor);
  invariant(stored !== undefined, `${task.tensor} is in no file any more`);
  const source = dtype === null ? stored : convertedTensor(stored, dtype);
  if (!task.quantize) return writeAll([source], task, piece);
  return callHook(owner, `quantizing ${task.tensor}`, () => writeAll(plan.replace(source) ?? [], task, piece));
}

function writeAll(
  tensors: readonly QuantizedTensor[],
  { tensor, file, outputs }: CheckpointTask,
  piece: Uint8Array,
): readonly DeferredTensor[] {
  const deferred: DeferredTensor[] = [];
  const output = OutputFile.open(file);
  try {
    for (const [i, place] of outputs.entries()) {
      const made = tensors[i];
      if (made === undefined || !isSame(made, place)) throw unsteady(tensor);
      if (place.position === null) deferred.push(settle(made));
      else copy(made, output, place.position, piece);
    }
  } finally {
    output.close();
  }
  return deferred;
}

function copy(tensor: QuantizedTensor, output: OutputFile, position: number, piece: Uint8Array): void {
  const sizeBytes = bytesOf(tensor);
  for (let done = 0; done < sizeBytes; done += piece.length) {
    const bytes = piece.subarray(0, Math.min(piece.length, sizeBytes - done));
    tensor.read(bytes, done);
    output.write(bytes, position + done);
  }
}

/** A deferred tensor, now that its shape can be told. Throws PluginError `INVALID_CHECKPOINT_QUANTIZER`. */
function settle(tensor: QuantizedTensor): DeferredTensor {
  const { name, dtype, shape: largest } = tensor;
  const shape = tensor.settledShape?.() ?? largest;
  const sizeBytes = bytesOf({ dtype, shape });
  if (!(sizeBytes <= bytesOf(tensor))) {
    const [expected, received] = [`at most [${largest.join(", ")}]`, `[${shape.join(", ")}]`];
    throw new PluginError(
      "INVALID_CHECKPOINT_QUANTIZER",
      `${name}: expected its shape to be ${expected}, as planned, but it is ${received}`,
      { tensor: name, expected, received },
    );
  }
  const bytes = new Uint8Array(sizeBytes);
  tensor.read(bytes, 0);
  return { name, dtype, shape, bytes };
}

function isSame(made: QuantizedTensor, place: TaskOutput): boolean {
  const deferred = made.settledShape !== undefined;
  const shape = shapesEqual(made.shape, place.shape);
  return made.name === place.name && made.dtype === place.dtype && shape && deferred === (place.position === null);
}

function unsteady(tensor: string): PluginError {
  return new PluginError(
    "INVALID_CHECKPOINT_QUANTIZER",
    `${tensor}: expected a plan to name the same tensors whenever it is asked but it names others now`,
    { tensor },
  );
}

/** Bytes of a tensor. */
export function bytesOf({ dtype, shape }: Pick<TensorSpec, "dtype" | "shape">): number {
  return elementCount(shape) * dtypeBytes(dtype);
}
