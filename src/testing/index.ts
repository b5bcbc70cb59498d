/** `shardloom/testing`: tensor parallelism without threads, and layers without models. Wiring only. */
export { SafetensorsFile } from "../checkpoint/safetensors.js";
export { SafetensorsDirectory } from "../checkpoint/safetensors-directory.js";
export { driveInTurns } from "../collectives/turns.js";
export { ArenaAllocator } from "../core/arena.js";
export { createReferenceKernels } from "../kernels/reference.js";
export { VocabParallelEmbedding } from "../layers/embedding.js";
export type { LayerContext, LinearModule } from "../layers/layer-context.js";
export {
  ColumnParallelLinear,
  MergedColumnParallelLinear,
  QKVParallelLinear,
  ReplicatedLinear,
  RowParallelLinear,
} from "../layers/linear.js";
export { scaleSplit, splitHeads, splitSize, splitUnits } from "../parallel/partition.js";
export {
  checkpointOf,
  compareShard,
  type LoadedLayers,
  type LoadLayersOptions,
  loadLayers,
  type ShardDifference,
} from "./layers.js";
export { TurnsExecutor } from "./turns-executor.js";
