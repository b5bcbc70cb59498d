/**
 * Which files of a directory hold a model's weights: those that model.safetensors.index.json names, or without one all
 * .safetensors files. An index is a claim about those files; what it says is checked when they are open.
 */
import { join } from "node:path";
import { CheckpointError, describeValue } from "../core/errors.js";
import { isJsonObject, parseJsonObject, readTextFile } from "../core/json.js";
import { findDuplicateKey } from "./duplicate-keys.js";

export const INDEX_FILE = "model.safetensors.index.json";

/** More files than any model is split into; each stays open while the model loads. */
export const MAX_WEIGHT_FILES = 10_000;

const SAFETENSORS = ".safetensors";

/** Name of a tensor -> name of the file that holds it, relative to the index. */
export type WeightMap = ReadonlyMap<string, string>;

/** What was found: the files to open, and the index to hold them to, if there is one. */
export interface WeightFiles {
  /** Names relative to the directory, sorted. */
  readonly files: readonly string[];
  readonly index: WeightMap | null;
}

/**
 * Picks the weight files among the `names` of the files in `directory`; the index is read from there. An index decides
 * alone: files beside those it names are not opened. Without one, hidden files are passed over, and so is
 * `consolidated*.safetensors` (the same weights in Mistral's own layout) beside `model*.safetensors`.
 *
 * Throws CheckpointError `NO_SAFETENSORS`, saying that `subject` has none, or what `readWeightMap` throws.
 */
export function selectWeightFiles(names: readonly string[], directory: string, subject = directory): WeightFiles {
  if (names.includes(INDEX_FILE)) {
    const index = readWeightMap(join(directory, INDEX_FILE));
    return { files: [...new Set(index.values())].sort(), index };
  }
  // Names with a slash come from a listing of the hub, and are not weights of this model.
  const candidates = names.filter((name) => /^[^./\\][^/\\]*$/.test(name) && isSafetensors(name)).sort();
  const named = candidates.some((name) => name.startsWith("model"));
  const files = named ? candidates.filter((name) => !name.startsWith("consolidated")) : candidates;
  if (files.length > 0) return { files, index: null };
  throw noSafetensors(names, subject);
}

/** Whether a file is a safetensors file by its name. */
export function isSafetensors(name: string): boolean {
  return name.endsWith(SAFETENSORS);
}

/** Whether a file holds pickled PyTorch weights by its name. */
export function isPickle(name: string): boolean {
  return /^(pytorch_model.*\.bin|.*\.pth?)$/.test(name);
}

/**
 * Reads and checks an index. Throws CheckpointError `FILE_NOT_FOUND`, `INVALID_UTF8`, `INVALID_JSON`, `DUPLICATE_KEY`,
 * `INVALID_INDEX` or `UNSAFE_FILE_NAME`.
 */
export function readWeightMap(file: string): WeightMap {
  const text = readTextFile(file);
  const index = parseJsonObject(text, file);
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null) throw invalid("DUPLICATE_KEY", file, "every key once", `${JSON.stringify(duplicate)} twice`);
  const map = index["weight_map"];
  if (!isJsonObject(map)) throw invalid("INVALID_INDEX", file, "weight_map to be an object", describeValue(map));
  const weights = new Map<string, string>();
  for (const [tensor, name] of Object.entries(map)) {
    if (typeof name !== "string") {
      throw invalid("INVALID_INDEX", file, "weight_map to hold file names", describeValue(name), tensor);
    }
    checkFileName(name, file, tensor);
    weights.set(tensor, name);
  }
  const files = new Set(weights.values()).size;
  if (files === 0 || files > MAX_WEIGHT_FILES) {
    throw invalid("INVALID_INDEX", file, `weight_map to name 1 to ${MAX_WEIGHT_FILES} files`, `${files} files`);
  }
  return weights;
}

/**
 * Only a name that stays below the directory may be opened. Links are followed: every file of the hub's cache is one, and
 * whoever can put a link there can put the file there.
 */
function checkFileName(name: string, file: string, tensor: string): void {
  const segments = name.split("/");
  const plain = segments.every((segment) => segment !== "" && segment !== "." && segment !== "..");
  // A backslash or a colon is harmless here and a path on Windows; a NUL ends a path for the system but not for us.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is the character to refuse
  if (plain && !/[\\:\u0000]/.test(name) && isSafetensors(name)) return;
  const expected = `the name of a ${SAFETENSORS} file below the index`;
  throw invalid("UNSAFE_FILE_NAME", file, expected, describeValue(name), tensor);
}

function noSafetensors(names: readonly string[], subject: string): CheckpointError {
  const pickle = names.find(isPickle);
  const advice = "; only safetensors is read, because unpickling runs code: convert the model, or take its safetensors";
  const received = pickle === undefined ? "none" : pickle;
  return new CheckpointError(
    "NO_SAFETENSORS",
    `${subject}: expected ${SAFETENSORS} files but found ${received}${pickle === undefined ? "" : advice}`,
    { file: subject, expected: `*${SAFETENSORS}`, received },
  );
}

function invalid(code: string, file: string, expected: string, received: string, tensor?: string): CheckpointError {
  const subject = tensor === undefined ? file : `${file}: tensor ${JSON.stringify(tensor)}`;
  return new CheckpointError(code, `${subject}: expected ${expected} but received ${received}`, {
    ...(tensor === undefined ? {} : { tensor }),
    file,
    expected,
    received,
  });
}
