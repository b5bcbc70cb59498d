/** The plugin API: everything a plugin may import. Wiring only. */

export { type BlockLayout, type BlockRuns, splitBlocks } from "./checkpoint/block-layout.js";
export type { Checkpoint, CheckpointTensor } from "./checkpoint/checkpoint.js";
export { RandomAccessFile, type ReadObserver, type StridedRuns } from "./checkpoint/random-access-file.js";
export type { RowGroups } from "./checkpoint/row-groups.js";
export type { ReadGroup, SharedItem, SharedPiece, SharedReads } from "./checkpoint/shared-reads.js";
export type { AllGather, AllReduce, Broadcast, Pass } from "./collectives/collective.js";
export {
  bf16ToF32,
  bitsToF32,
  convertFloats,
  type DType,
  dtypeBytes,
  type FloatDType,
  f16ToF32,
  f32ToBf16,
  f32ToBits,
  f32ToF16,
  isFloat,
  widenTable,
} from "./core/dtype.js";
export {
  CheckpointError,
  describeValue,
  type ErrorDetails,
  InternalError,
  OptionError,
  PluginError,
  ShardloomError,
  UnsupportedError,
} from "./core/errors.js";
export { isJsonObject, type JsonObject, type JsonValue, parseJsonObject, readJsonObject } from "./core/json.js";
export type { Operand } from "./core/operand.js";
export { type PackedStrings, packedString, packStrings, unpackStrings } from "./core/packed-strings.js";
export { bytesOf, elementCount, f32Of, i32Of, type Tensor } from "./core/tensor.js";
export { dequantize, MIN_BLOCK_SIZE } from "./kernels/execution-format.js";
export type { Code4Weight, DenseWeight, Int8Weight, Kernels, LinearWeight, PreparedWeight } from "./kernels/kernels.js";
export type { CheckpointReader, ModelDescription, ModelLoader } from "./loading/model-loader.js";
export { PLUGIN_API_VERSION, type Plugin, type PluginContext } from "./loading/plugins.js";
export { type PackedVocabulary, type TokenizerFiles, tokenizerJson } from "./loading/tokenizer-files.js";
export { type Range, rangeSize } from "./parallel/partition.js";
export type {
  CheckpointQuantizationPlan,
  CheckpointQuantizationRequest,
  CheckpointQuantizer,
  QuantizedTensor,
} from "./quantization/checkpoint-quantizer.js";
export type {
  ExecutionWeight,
  Extent,
  LinearLayer,
  LinearMethod,
  LinearPart,
  LoadedWeights,
  OriginalOffsets,
  ParameterSpec,
  QuantizationConfig,
  QuantizationConfigFactory,
  QuantizationRequest,
  ShardId,
  ShardIndexer,
  ShardIndexQuery,
  WeightCreation,
} from "./quantization/contract.js";
export {
  Codebooks,
  ExecutionLinearMethod,
  type ExecutionSegment,
  type ExecutionStorage,
  executionSegments,
} from "./quantization/execution-linear-method.js";
