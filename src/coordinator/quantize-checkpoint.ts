/**
 * Quantizes a checkpoint into a new one. Everything is decided before a weight is read: which tensors there will be, and
 * where each lies in which file. Then threads take one tensor of the source at a time and write to those places. What makes
 * a file readable, its header, and what makes a directory a model, config.json, come last; the directory gets its
 * name when all is done.
 */
import { join } from "node:path";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { convertedTensor } from "../checkpoint/converted-tensor.js";
import { INDEX_FILE } from "../checkpoint/index-file.js";
import { checkNowAndThen } from "../checkpoint/open-file.js";
import { checkOutputApart, OutputDirectory } from "../checkpoint/output-directory.js";
import { OutputFile } from "../checkpoint/output-file.js";
import { formatHeader, layOutDeferred } from "../checkpoint/safetensors-layout.js";
import { type FloatDType, isFloat } from "../core/dtype.js";
import { describeValue, invariant, OptionError, PluginError, UnsupportedError } from "../core/errors.js";
import { isJsonObject, type JsonObject } from "../core/json.js";
import { threadEntry } from "../core/package-files.js";
import { describeShape } from "../core/tensor.js";
import { type PlannedCheckpoint, type PlannedFile, planCheckpoint } from "../loading/checkpoint-plan.js";
import type { CheckpointTaskSetup, DeferredTensor } from "../loading/checkpoint-task.js";
import { safetensorsLoader } from "../loading/default-loader.js";
import { dtypeMembers, formatJson, writeModelFiles, writeTextFile } from "../loading/model-files.js";
import type { ModelDescription, ModelLoader } from "../loading/model-loader.js";
import type { Registries } from "../loading/plugins.js";
import { matchModules } from "../loading/skip-patterns.js";
import type {
  CheckpointQuantizationPlan,
  CheckpointQuantizationRequest,
} from "../quantization/checkpoint-quantizer.js";
import { callHook } from "../quantization/registry.js";
import { findLinearModules } from "../rank/linear-modules.js";
import { runTasks, throwIfCancelled } from "./task-pool.js";

const WORKER = threadEntry("checkpoint-task").href;

export interface QuantizeCheckpointRequest {
  /** Local path of the model. */
  readonly path: string;
  readonly loader: ModelLoader;
  readonly description: ModelDescription;
  readonly registries: Registries;
  /** File URLs of the plugins in the registries, in order. */
  readonly plugins: readonly string[];
  /** Format to quantize into. */
  readonly format: string;
  /** What the format is told; keys are its own. */
  readonly options: JsonObject;
  /** Patterns of modules to leave as they are; null for the format's own choice. */
  readonly skip: readonly string[] | null;
  /** dtype that weights are converted to before; null to take them as they are. */
  readonly dtype: FloatDType | null;
  /** Absolute path of the new directory. */
  readonly out: string;
  readonly overwrite: boolean;
  readonly maxShardBytes: number;
  readonly threads: number;
  readonly onProgress?: ((progress: QuantizeProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** How far quantizing has got. */
export interface QuantizeProgress {
  /** Bytes of the source's tensors that are done with. */
  readonly bytesDone: number;
  readonly totalBytes: number;
}

/** What was made. */
export interface QuantizeReport {
  /** Absolute path of the new model. */
  readonly out: string;
  /** Names of the weight files. */
  readonly files: readonly string[];
  readonly quantizedTensors: number;
  /** Tensors that stayed as they were. */
  readonly copiedTensors: number;
  /** Bytes of tensors in the source, and in the new checkpoint. */
  readonly sourceBytes: number;
  readonly outputBytes: number;
}

/**
 * Throws, with nothing left behind: OptionError for a wrong format, option or output, UnsupportedError for a model that is
 * not known or that is quantized already, CheckpointError for one that is damaged, PluginError, RequestError `CANCELLED`, and
 * ShardloomError `WRITE_FAILED`, `INSUFFICIENT_SPACE`, `TASK_FAILED`.
 */
export async function quantizeCheckpoint(request: QuantizeCheckpointRequest): Promise<QuantizeReport> {
  const { path, loader, out, overwrite } = request;
  checkOutputApart(out, path);
  const checkpoint = await loader.open(path);
  try {
    const prepared = await prepare(request, checkpoint);
    throwIfCancelled(request.signal, "quantizing");
    const directory = OutputDirectory.create(out, prepared.planned.sizeBytes, { overwrite });
    try {
      // The threads have opened it themselves.
      const { openFiles = [] } = checkpoint;
      const report = await write(request, prepared, directory.path, checkNowAndThen(openFiles));
      for (const file of openFiles) file.checkUnchanged();
      directory.commit();
      return report;
    } catch (error) {
      directory.discard();
      throw error;
    }
  } finally {
    checkpoint.close();
  }
}

/** What is known before anything is written. */
interface Prepared {
  readonly quantization: CheckpointQuantizationRequest;
  readonly settings: string;
  readonly planned: PlannedCheckpoint;
}

async function prepare(request: QuantizeCheckpointRequest, checkpoint: Checkpoint): Promise<Prepared> {
  const { path, loader, description, registries, format, options, skip, dtype, maxShardBytes } = request;
  const { quantizer, owner } = registries.checkpointQuantizers.select(format);
  refuseQuantized(description.config, checkpoint, path);
  const tensors = new Set(checkpoint.tensors.keys());
  const modules = await findLinearModules({ path, loadFormat: loader.format, description, registries, tensors });
  const quantization = { options, skipModules: matchModules(skip, modules) };
  const plan = callHook(owner, `planning ${format}`, () => quantizer.plan(quantization));
  const planned = planCheckpoint({
    tensors: [...checkpoint.tensors.values()].map((each) => (dtype === null ? each : convertedTensor(each, dtype))),
    modules,
    plan,
    owner,
    maxShardBytes,
  });
  if (planned.quantized.length === 0) {
    throw new OptionError(
      "NOTHING_TO_QUANTIZE",
      "expected a linear module to quantize but all of them are to be left as they are",
      {
        option: "skip",
      },
    );
  }
  return { quantization, settings: settingsOf(plan, owner), planned };
}

/** Throws UnsupportedError `ALREADY_QUANTIZED` where config.json says so and the tensors do not say otherwise. */
function refuseQuantized(config: JsonObject, { tensors }: Checkpoint, path: string): void {
  const text = config["text_config"];
  const settings = config["quantization_config"] ?? (isJsonObject(text) ? text["quantization_config"] : undefined);
  const stored = [...tensors.values()].find(({ dtype }) => !isFloat(dtype));
  // A loader may yield the floating-point numbers that quantized weights stand for.
  if (!isJsonObject(settings) || stored === undefined) return;
  const method = JSON.stringify(settings["quant_method"]);
  const received = `${stored.name} ${describeShape(stored.dtype, stored.shape)}`;
  throw new UnsupportedError(
    "ALREADY_QUANTIZED",
    `${path}: expected a model that is not quantized but its quant_method is ${method}, and it holds ${received}`,
    { file: path, tensor: stored.name, expected: "floating-point weights", received },
  );
}

/** Throws PluginError `INVALID_CHECKPOINT_QUANTIZER` unless the settings are the text of a JSON object. */
function settingsOf({ settings }: CheckpointQuantizationPlan, owner: string): string {
  try {
    if (isJsonObject(JSON.parse(settings))) return settings;
  } catch {
    // The message below says what was expected.
  }
  throw new PluginError(
    "INVALID_CHECKPOINT_QUANTIZER",
    `${owner}: expected the settings of a plan to be the text of a JSON object but received ${describeValue(settings)}`,
    { plugin: owner },
  );
}

async function write(
  request: QuantizeCheckpointRequest,
  { quantization, settings, planned }: Prepared,
  directory: string,
  checkSource: () => void,
): Promise<QuantizeReport> {
  const { path, loader, plugins, format, dtype, description, threads, signal, onProgress } = request;
  for (const { name } of planned.files) OutputFile.create(join(directory, name)).close();
  const deferred = new Map<string, DeferredTensor[]>(planned.files.map(({ name }) => [name, []]));
  const setup: CheckpointTaskSetup = { path, loadFormat: loader.format, plugins, format, request: quantization, dtype };
  const totalBytes = planned.tasks.reduce((sum, { sourceBytes }) => sum + sourceBytes, 0);
  let bytesDone = 0;
  const tasks = planned.tasks.map((task) => ({ ...task, file: join(directory, task.fileName) }));
  await runTasks<(typeof tasks)[number], readonly DeferredTensor[]>(tasks, {
    worker: { filename: WORKER, name: "runCheckpointTask", setup, activity: "quantizing" },
    threads,
    signal,
    done: ({ fileName, sourceBytes }, tensors) => {
      checkSource();
      deferred.get(fileName)?.push(...tensors);
      bytesDone += sourceBytes;
      onProgress?.({ bytesDone, totalBytes });
    },
  });
  const weightMap = new Map<string, string>();
  let outputBytes = 0;
  for (const file of planned.files) {
    const entries = finishFile(directory, file, deferred.get(file.name) ?? []);
    for (const { name, begin, end } of entries) {
      weightMap.set(name, file.name);
      outputBytes += end - begin;
    }
  }
  if (planned.files.length > 1) writeIndex(directory, weightMap, outputBytes);
  const source = { path, description, isHuggingFace: loader === safetensorsLoader };
  writeModelFiles(directory, source, membersOf(settings, dtype, description.config));
  return {
    out: request.out,
    files: planned.files.map(({ name }) => name),
    quantizedTensors: planned.quantized.length,
    copiedTensors: tasks.length - planned.quantized.length,
    sourceBytes: totalBytes,
    outputBytes,
  };
}

/** Writes the deferred tensors of a file and, with everything in its place, the header. Returns what is in the file. */
function finishFile(directory: string, { name, layout, deferred }: PlannedFile, made: readonly DeferredTensor[]) {
  invariant(made.length === deferred.length, `${name} lacks tensors`);
  const places = layOutDeferred(layout, made);
  const bytes = new Map(made.map((tensor) => [tensor.name, tensor.bytes]));
  const file = OutputFile.open(join(directory, name));
  try {
    for (const place of places) file.write(bytes.get(place.name) ?? new Uint8Array(0), layout.dataStart + place.begin);
    file.write(formatHeader(layout, places), 0);
    file.sync();
  } finally {
    file.close();
  }
  return [...layout.entries, ...places];
}

/** The index as transformers writes it. */
function writeIndex(directory: string, weightMap: ReadonlyMap<string, string>, totalSize: number): void {
  const map = Object.fromEntries([...weightMap].sort(([a], [b]) => (a < b ? -1 : 1)));
  writeTextFile(join(directory, INDEX_FILE), formatJson({ metadata: { total_size: totalSize }, weight_map: map }));
}

/** What becomes of config.json. */
function membersOf(settings: string, dtype: FloatDType | null, config: JsonObject): ReadonlyMap<string, string> {
  return new Map([["quantization_config", settings], ...(dtype === null ? [] : dtypeMembers(dtype, config))]);
}
