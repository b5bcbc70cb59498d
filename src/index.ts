/** The public API. Wiring only. */

export { type LaunchOptions, type LoadProgress, launch } from "./api/launch.js";
export { type PlanOptions, plan } from "./api/plan.js";
export { type QuantizeOptions, quantize } from "./api/quantize.js";
export { type ShardOptions, shard } from "./api/shard.js";
export type { DownloadProgress } from "./checkpoint/hub-snapshot.js";
export type { CollectivePayload } from "./collectives/payload.js";
export type { QuantizeProgress, QuantizeReport } from "./coordinator/quantize-checkpoint.js";
export type { ShardProgress, ShardReport } from "./coordinator/shard-checkpoint.js";
export {
  CheckpointError,
  CollectiveError,
  type ErrorDetails,
  InternalError,
  OptionError,
  PartitionError,
  PluginError,
  RankError,
  RequestError,
  ShardloomError,
  UnsupportedError,
} from "./core/errors.js";
export {
  type CollectivesProfile,
  type KernelProfile,
  type PhaseProfile,
  profileSince,
  type RankProfile,
  type StepProfile,
} from "./core/step-profile.js";
export type { CapacityOptions } from "./engine/capacity.js";
export type { ChatMessage } from "./engine/chat-template.js";
export type { Engine, EngineStats } from "./engine/engine.js";
export type {
  GenerationDelta,
  GenerationRequest,
  GenerationTimings,
  RequestOptions,
  ScoreResult,
  TokenLogprob,
  TokenLogprobs,
} from "./engine/generation.js";
export type { ModelPlan, PlannedModel, PlanProblem, RankPlan, Replicated, Uneven } from "./engine/model-plan.js";
export type { SamplingOptions } from "./engine/sampling.js";
export type { FinishReason } from "./engine/sequence.js";
export type { Activations } from "./kernels/activation-levels.js";
export {
  LOAD_PHASES,
  type LoadPhase,
  type LoadPhaseProfile,
  type LoadProfile,
  type LoadSkew,
  type LoadSpan,
  type RankLoadProfile,
  type SlowTensor,
  type SpanPart,
  slowestTensors,
} from "./loading/load-profile.js";
export { SUPPORTED_ARCHITECTURES } from "./models/registry.js";
export type { Placement, RankPlace } from "./parallel/placement.js";
export type { StepExchange } from "./rank/group-plan.js";
export type { RankReport } from "./rank/model-runner.js";
