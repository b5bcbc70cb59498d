/**
 * The contract of a model loader: it recognizes a model on disk, describes it in the words of Hugging Face's files
 * (config.json, tokenizer.json, ...), and opens its checkpoint. Who starts the ranks asks for the description once; the
 * checkpoint is opened by every rank, which then reads only its slices.
 */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import type { ReadObserver } from "../checkpoint/random-access-file.js";
import type { FloatDType } from "../core/dtype.js";
import type { JsonObject } from "../core/json.js";
import type { TokenizerFiles } from "./tokenizer-files.js";

/** Everything about a model but its weights. Plain data: it crosses threads. */
export interface ModelDescription {
  /** config.json, or its equivalent made from another format's metadata. */
  readonly config: JsonObject;
  /** generation_config.json; null where there is none. */
  readonly generationConfig: JsonObject | null;
  /** Null where the model has none (token ids only). */
  readonly tokenizer: TokenizerFiles | null;
  /** Jinja source; null where there is none. */
  readonly chatTemplate: string | null;
}

/** One tensor that a model's layers would take from an unquantized checkpoint. */
export interface ExpectedTensor {
  readonly name: string;
  readonly dtype: FloatDType;
  readonly shape: readonly number[];
}

/** What the model expects of its checkpoint: for loaders that make weights rather than find them. */
export interface ExpectedWeights {
  readonly config: JsonObject;
  /** For whatever is random about them. */
  readonly seed: number;
  /** In the order of the layers. */
  tensors(): readonly ExpectedTensor[];
}

/** Who opens a checkpoint, for loaders that prepare for one rank or divide work among all. */
export interface CheckpointReader {
  readonly rank: number;
  readonly worldSize: number;
  /** Whether checksums are verified, where there are any: all ranks together verify each once. */
  readonly verifyChecksums: boolean;
  /** Hears of reads. */
  readonly observer?: ReadObserver;
}

export interface ModelLoader {
  /** Name of the format, as `loadFormat` gives it: "safetensors", "gguf", ... */
  readonly format: string;
  /** Whether a local path looks like this format; cheap, for `loadFormat: "auto"`. */
  matches(path: string): boolean;
  /** Throws CheckpointError for anything missing or damaged. */
  describe(path: string): Promise<ModelDescription>;
  /**
   * The `config` of `describe` alone, where that is there much sooner: ranks need no more to start, and vocabularies are large.
   * Throws as `describe` does.
   */
  readConfig?(path: string): Promise<JsonObject>;
  /**
   * Reads and checks headers only. Throws CheckpointError. With an observer in `reader`, somebody asked for a profile of
   * loading: it is to be told of every read of the files, then and later (RandomAccessFile.open takes one).
   */
  open(path: string, expected?: ExpectedWeights, reader?: CheckpointReader): Promise<Checkpoint>;
}
