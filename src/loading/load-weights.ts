/**
 * Loads a checkpoint into one rank's model: offers every tensor to the layer that declared its name, in the order the
 * files hold them, and then demands that nothing is missing, nothing is left over and nothing was written twice.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { CheckpointError } from "../core/errors.js";
import type { Logger } from "../core/logger.js";
import { describeShape } from "../core/tensor.js";
import type { LayerContext } from "../layers/layer-context.js";

export interface LoadWeightsOptions {
  /** Tensors the model knows and does not use. */
  readonly ignores: (name: string) => boolean;
  /** Called after each tensor with the bytes read so far. */
  readonly onProgress?: (bytesRead: number) => void;
  readonly logger?: Logger;
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
  const ignored: string[] = [];
  const loaded = new Set<string>();
  checkSurplus(context, checkpoint, options.ignores);
  for (const tensor of checkpoint.tensors.values()) {
    const target = context.targets.get(tensor.name);
    if (target === undefined) {
      ignored.push(tensor.name);
      continue;
    }
    target.load(tensor);
    loaded.add(tensor.name);
    options.onProgress?.(checkpoint.bytesRead);
  }
  checkComplete(context, loaded);
  context.processWeightsAfterLoading();
  if (ignored.length > 0) options.logger?.info({ rank: context.rank, ignored }, "checkpoint tensors ignored by rule");
  return { ignored };
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
    const absent = [...context.targets].filter(([name, target]) => target.parameter === parameter && !loaded.has(name));
    const names = absent.map(([name, { shardId }]) => (shardId === null ? name : `${name} (shard ${shardId})`));
    const [first] = absent;
    throw new CheckpointError(
      "MISSING_TENSOR",
      `${parameter.name} on rank ${context.rank}: rows ${gap.offset}..${gap.offset + gap.size - 1} were not loaded; ` +
        `expected ${names.join(" or ") || "another tensor"} in the checkpoint but received none`,
      {
        tensor: first?.[0] ?? parameter.name,
        expected: names.join(" or "),
        received: "none",
        rank: context.rank,
        ...(first === undefined || first[1].shardId === null ? {} : { shardId: first[1].shardId }),
      },
    );
  }
}
