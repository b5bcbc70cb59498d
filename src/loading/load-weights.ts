/**
 * Loads a checkpoint into one rank's model: offers every tensor to the layer that declared its name, in the order the
 * files hold them, and then demands that nothing is missing, nothing is left over and nothing was written twice.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { CheckpointError } from "../core/errors.js";
import type { Logger } from "../core/logger.js";
import { describeShape } from "../core/tensor.js";
import type { LayerContext, WeightTarget } from "../layers/layer-context.js";
import type { LoadObserver } from "./load-observer.js";
import { seemEqual } from "./same-bytes.js";

export interface LoadWeightsOptions {
  /** Tensors the model knows and does not use. */
  readonly ignores: (name: string) => boolean;
  /** Of an ignored tensor, the one that it should repeat; null for one that repeats none. */
  readonly repeats?: (name: string) => string | null;
  /** Where a quantization format shows another checkpoint: what is on disk, in which repeated tensors are alike. */
  readonly stored?: Checkpoint;
  /** Called after each tensor. */
  readonly onProgress?: () => void;
  readonly logger?: Logger;
  /** Hears of every tensor and every layer. */
  readonly observer?: LoadObserver;
}

/** What a rank did not take. */
export interface LoadWeightsReport {
  readonly ignored: readonly string[];
}

/** Throws CheckpointError `UNEXPECTED_TENSOR`, `MISSING_TENSOR`, or what a weight loader throws. */
export function loadWeights(
  context: LayerContext,
  checkpoint: Checkpoint,
  options: LoadWeightsOptions,
): LoadWeightsReport {
  const { observer } = options;
  const ignored: string[] = [];
  const loaded = new Set<string>();
  checkSurplus(context, checkpoint, options.ignores);
  for (const tensor of checkpoint.tensors.values()) {
    const targets = context.targets.get(tensor.name);
    if (targets === undefined) {
      ignored.push(tensor.name);
      continue;
    }
    if (observer === undefined) for (const target of targets) target.load(tensor);
    else loadObserved(tensor, targets, observer);
    loaded.add(tensor.name);
    options.onProgress?.();
  }
  checkComplete(context, loaded);
  context.processWeightsAfterLoading(observer);
  if (ignored.length > 0) options.logger?.info({ rank: context.rank, ignored }, "checkpoint tensors ignored by rule");
  // Every rank would find the same; without bytes nothing is read.
  if (context.rank === 0 && context.kernels.backend !== "shape-only") {
    observer?.enter("other", "comparison of ignored tensors");
    warnOfOthers(options.stored ?? checkpoint, ignored, options);
    observer?.leave();
  }
  return { ignored };
}

/** What reaches a parameter are the bytes of the shard. */
function loadObserved(tensor: CheckpointTensor, targets: readonly WeightTarget[], observer: LoadObserver): void {
  let bytes = 0;
  observer.enter("shard", tensor.name);
  for (const target of targets) {
    const { parameter } = target;
    const before = parameter.loadedExtent;
    target.load(tensor);
    bytes += parameter.bytesOfExtent(parameter.loadedExtent - before);
  }
  observer.leave(bytes);
}

/** A tensor that is ignored because another one says the same should do so: else config.json and weights disagree. */
function warnOfOthers(
  { tensors }: Checkpoint,
  ignored: readonly string[],
  { repeats, logger }: LoadWeightsOptions,
): void {
  if (repeats === undefined || logger === undefined) return;
  for (const name of ignored) {
    const tensor = tensors.get(name);
    const used = tensors.get(repeats(name) ?? "");
    if (tensor === undefined || used === undefined || seemEqual(tensor, used)) continue;
    logger.warn(
      { tensor: name, file: tensor.file, used: used.name },
      `${name} is not ${used.name}, which config.json has the model use in its place; it is ignored`,
    );
  }
}

/** Before a byte is read: every tensor has a taker or is ignored by rule. */
function checkSurplus(context: LayerContext, checkpoint: Checkpoint, ignores: (name: string) => boolean): void {
  const surplus = (tensor: CheckpointTensor): boolean => !context.targets.has(tensor.name) && !ignores(tensor.name);
  const unexpected = [...checkpoint.tensors.values()].filter(surplus);
  const [first] = unexpected;
  if (first === undefined) return;
  const more = unexpected.length > 1 ? ` and ${unexpected.length - 1} more` : "";
  throw new CheckpointError(
    "UNEXPECTED_TENSOR",
    `${first.file}: no layer of this model takes the tensor ${first.name} ${describeShape(first.dtype, first.shape)}${more}`,
    { tensor: first.name, file: first.file, rank: context.rank, received: unexpected.length },
  );
}

function checkComplete(context: LayerContext, loaded: ReadonlySet<string>): void {
  for (const parameter of context.parameters) {
    const [gap] = parameter.missing();
    if (gap === undefined) continue;
    const absent = [...context.targets].flatMap(([name, targets]) => {
      const target = targets.find((candidate) => candidate.parameter === parameter);
      return target === undefined || loaded.has(name) ? [] : [{ name, shardId: target.shardId }];
    });
    const names = absent.map(({ name, shardId }) => (shardId === null ? name : `${name} (shard ${shardId})`));
    const [first] = absent;
    throw new CheckpointError(
      "MISSING_TENSOR",
      `${parameter.name} on rank ${context.rank}: rows ${gap.offset}..${gap.offset + gap.size - 1} were not loaded; ` +
        `expected ${names.join(" or ") || "another tensor"} in the checkpoint but received none`,
      {
        tensor: first?.name ?? parameter.name,
        expected: names.join(" or "),
        received: "none",
        rank: context.rank,
        ...(first === undefined || first.shardId === null ? {} : { shardId: first.shardId }),
      },
    );
  }
}
