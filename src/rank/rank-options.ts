import type { CollectivePayload } from "../collectives/payload.js";
import type { FloatDType } from "../core/dtype.js";
import type { Activations } from "../kernels/activation-levels.js";
import type { KvCacheDType } from "../kernels/kv-cache-dtype.js";
import type { ModelDescription } from "../loading/model-loader.js";
import type { QuantizationSelection } from "../quantization/registry.js";
import type { StepLimits } from "./step.js";

/** Everything the ranks of an engine are told alike. Plain data: it crosses threads. */
export interface RankOptions {
  /** Local path of the model. */
  readonly path: string;
  /** Format of its loader, decided by the coordinator. */
  readonly loadFormat: string;
  readonly description: ModelDescription;
  readonly worldSize: number;
  /** How the weights are quantized; null if they are not. */
  readonly quantization: QuantizationSelection | null;
  /** dtype of unquantized weights. */
  readonly dtype: FloatDType;
  readonly kvCacheDtype: KvCacheDType;
  /** How kernels multiply with quantized weights. */
  readonly activations: Activations;
  /** Tokens a block of KV cache holds. */
  readonly blockSize: number;
  readonly blocks: number;
  /** Longest sequence. */
  readonly maxModelLength: number;
  readonly limits: StepLimits;
  /** Whether ranks verify the checksums of a sharded state while they load it; true by default. */
  readonly verifyChecksums?: boolean;
  /** What all-reduces carry; f32 by default. */
  readonly collectivePayload?: CollectivePayload;
  /** Seed of weights that the loader makes up; 0 by default. */
  readonly weightSeed?: number;
}

/** What a thread is told of them. Ranks know no text, and a vocabulary takes longer to send than a thread to start. */
export function withoutText(options: RankOptions): RankOptions {
  return { ...options, description: { ...options.description, tokenizer: null, chatTemplate: null } };
}
