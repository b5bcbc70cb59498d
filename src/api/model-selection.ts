/** What every function of the API is told of a model: where it is, and how it is read. */
import type { DownloadProgress } from "../checkpoint/hub-snapshot.js";
import type { FloatDType } from "../core/dtype.js";
import type { JsonObject } from "../core/json.js";

/** Which model, and how it is read. Only `model` is needed. */
export interface ModelSelection {
  /** A directory, a file, or a hub id `org/name[@revision]`. */
  readonly model: string;
  /** Branch, tag or commit of a hub repository. */
  readonly revision?: string | undefined;
  /** Package names or paths. Those in SHARDLOOM_PLUGINS, separated by commas, are loaded as well. */
  readonly plugins?: readonly string[] | undefined;
  /** Name of a model loader; by default whichever recognizes the model. */
  readonly loadFormat?: string | undefined;
  /** dtype of unquantized weights; "auto" takes config.json's. */
  readonly dtype?: "auto" | FloatDType | undefined;
  /** Called for every chunk that is downloaded from the hub. */
  readonly onDownload?: ((progress: DownloadProgress) => void) | undefined;
  /** Gives up, and leaves nothing behind, when aborted. */
  readonly signal?: AbortSignal | undefined;
}

/** What a caller says about quantizing while a model is loaded. */
export interface QuantizationOptions {
  /**
   * Quantization method. A checkpoint that is quantized says so itself; one that is not is quantized while it is loaded,
   * by the plugin that serves the method.
   */
  readonly quantization?: string | undefined;
  /** What the method's plugin takes beside its name. */
  readonly quantizationOptions?: JsonObject | undefined;
}
