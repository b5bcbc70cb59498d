/** How much there is to read, for progress bars. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { CheckpointError, cannotRead } from "../core/errors.js";
import { isSafetensors, selectWeightFiles } from "./index-file.js";

/**
 * Bytes of the files that hold the weights of the model at a local path: about what all ranks read together, if each
 * weight is read once. Of a directory without safetensors, all files count. Throws what `selectWeightFiles` throws, and
 * CheckpointError `FILE_NOT_FOUND` or `READ_FAILED`.
 */
export function weightBytes(path: string): number {
  try {
    const status = statSync(path);
    if (!status.isDirectory()) return status.size;
    const names = readdirSync(path);
    const files = names.some(isSafetensors) ? selectWeightFiles(names, path).files : names;
    return files.reduce((sum, name) => sum + (statSync(join(path, name), { throwIfNoEntry: false })?.size ?? 0), 0);
  } catch (error) {
    throw error instanceof CheckpointError ? error : cannotRead(path, error);
  }
}
