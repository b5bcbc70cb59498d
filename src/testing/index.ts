/** `shardloom/testing`: tensor parallelism without threads, and layers without models. Wiring only. */
export { SafetensorsFile } from "../checkpoint/safetensors.js";
export { SafetensorsDirectory } from "../checkpoint/safetensors-directory.js";
export type { AllGather, AllReduce, Barrier, Broadcast, CollectiveRequest, Pass } from "../collectives/collective.js";
export { driveInTurns } from "../collectives/turns.js";
export { ArenaAllocator } from "../core/arena.js";
export type {
  TraceDocument,
  TraceMetadataEvent,
  TraceSliceEvent,
  TraceValue,
} from "../core/trace-events.js";
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
  type AtCollective,
  type AtTensor,
  type CollectiveFault,
  type CorruptPayload,
  type CorruptTensor,
  type CorruptValue,
  describeFault,
  type Fault,
  type FaultAnywhere,
  type FaultSchedule,
  type ShortRead,
  type TensorFault,
} from "../rank/faults.js";
export type {
  GroupOwnership,
  HeldCell,
  LayerOwnership,
  ParameterOwnership,
  ParameterSplit,
  RankOwnership,
  TensorOwnership,
} from "../rank/ownership.js";
export type { Disagreement } from "./agreement.js";
export { type AssertionDetails, SimulationAssertionError } from "./assertion-error.js";
export { collectiveTimeline } from "./collective-timeline.js";
export type { CollectiveRecord, CollectiveTrace, StepRecord } from "./collective-trace.js";
export { testPlugin } from "./conformance.js";
export type { PluginCheck } from "./conformance-check.js";
export type { ExpectedValues, MemoryModel, PluginFixture } from "./conformance-fixture.js";
export {
  type MatrixToStore,
  type ModelInFormatOptions,
  memoryTensor,
  modelInFormat,
  type StoredMatrix,
} from "./conformance-model.js";
export {
  type ComputeCost,
  type CostModel,
  type CostModelOptions,
  costModel,
  type SiteCost,
  type StepPrediction,
} from "./cost-model.js";
export { type ExpectedIndexerCall, type ExpectedIndexerCalls, expectIndexerCalls } from "./expect-indexer-calls.js";
export { expectOwnedOnce, type OwnedOnce } from "./expect-owned-once.js";
export { expectRanksAgree } from "./expect-ranks-agree.js";
export { expectReassembles, type Reassembled } from "./expect-reassembles.js";
export { expectSameLogits, type SameLogits, type SameLogitsOptions } from "./expect-same-logits.js";
export { type LaunchWithFaultsOptions, launchWithFaults } from "./faults-on-threads.js";
export {
  checkpointOf,
  compareShard,
  type LoadedLayers,
  type LoadLayersOptions,
  loadLayers,
  type ShardDifference,
} from "./layers.js";
export type { IndexerCall, OffsetComputation } from "./placement-recorder.js";
export type { ModelOptions } from "./preparation.js";
export type { ShapeSimulation, StepSize } from "./shape-simulation.js";
export { type SimulateOptions, simulate } from "./simulate.js";
export type { SimulatedLayer, SimulatedParameter, SimulatedRank } from "./simulated-rank.js";
export type { GeneratedTokens, Simulation } from "./simulation.js";
export type { TurnOrder } from "./turn-order.js";
export {
  type PassInterceptor,
  type StepObserver,
  TurnsExecutor,
  type TurnsExecutorOptions,
} from "./turns-executor.js";
