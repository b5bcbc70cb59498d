/** All safetensors files of a model directory as one checkpoint, held to the index where there is one. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { CheckpointError, cannotRead } from "../core/errors.js";
import type { Checkpoint, CheckpointTensor } from "./checkpoint.js";
import { INDEX_FILE, selectWeightFiles, type WeightFiles, type WeightMap } from "./index-file.js";
import type { OpenFile } from "./open-file.js";
import type { ReadObserver } from "./random-access-file.js";
import { SafetensorsFile } from "./safetensors.js";

export class SafetensorsDirectory implements Checkpoint {
  readonly files: readonly SafetensorsFile[];
  /** File by file, each in the order of its bytes. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;

  private constructor(files: readonly SafetensorsFile[], tensors: ReadonlyMap<string, CheckpointTensor>) {
    this.files = files;
    this.tensors = tensors;
  }

  /**
   * Opens every weight file of `directory` and reads the headers, nothing else. Throws CheckpointError
   * `FILE_NOT_FOUND`, `NO_SAFETENSORS`, what reading the index or a header throws; `MISSING_WEIGHT_FILE` when the index
   * names a file that is not there, `DUPLICATE_TENSOR` when two files hold one name, `TENSOR_NOT_IN_FILE` when a tensor
   * is not in the file that the index says, `TENSOR_NOT_IN_INDEX` when a file holds one that the index does not know.
   * After an error no file is left open.
   */
  static open(directory: string, observer?: ReadObserver): SafetensorsDirectory {
    const selected = selectWeightFiles(listNames(directory), directory);
    const files: SafetensorsFile[] = [];
    try {
      for (const name of selected.files) files.push(openWeightFile(directory, name, selected, observer));
      const tensors = mergeTables(files);
      if (selected.index !== null) checkIndex(selected.index, tensors, directory);
      return new SafetensorsDirectory(files, tensors);
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  get bytesRead(): number {
    return this.files.reduce((total, file) => total + file.bytesRead, 0);
  }

  get openFiles(): readonly OpenFile[] {
    return this.files.flatMap(({ openFiles }) => openFiles);
  }

  close(): void {
    for (const file of this.files) file.close();
  }
}

/** Names in a directory. Throws CheckpointError `FILE_NOT_FOUND` or `READ_FAILED`. */
export function listNames(directory: string): readonly string[] {
  try {
    return readdirSync(directory);
  } catch (cause) {
    throw cannotRead(directory, cause);
  }
}

function openWeightFile(
  directory: string,
  name: string,
  { index }: WeightFiles,
  observer?: ReadObserver,
): SafetensorsFile {
  try {
    return SafetensorsFile.open(join(directory, name), undefined, observer);
  } catch (error) {
    if (index === null || !(error instanceof CheckpointError) || error.code !== "FILE_NOT_FOUND") throw error;
    const tensors = [...index].filter(([, file]) => file === name).map(([tensor]) => tensor);
    throw new CheckpointError(
      "MISSING_WEIGHT_FILE",
      `${join(directory, INDEX_FILE)}: expected ${name}, with ${tensors.length} tensors (${tensors[0]}, ...), but it is missing`,
      { file: join(directory, name), expected: name, received: "no file" },
      { cause: error },
    );
  }
}

function mergeTables(files: readonly SafetensorsFile[]): ReadonlyMap<string, CheckpointTensor> {
  const merged = new Map<string, CheckpointTensor>();
  for (const file of files) {
    for (const [name, tensor] of file.tensors) {
      const other = merged.get(name);
      if (other !== undefined) {
        throw new CheckpointError(
          "DUPLICATE_TENSOR",
          `tensor ${JSON.stringify(name)}: expected it in one file but found it in ${other.file} and ${file.path}`,
          { tensor: name, expected: other.file, received: file.path, file: file.path },
        );
      }
      merged.set(name, tensor);
    }
  }
  return merged;
}

function checkIndex(index: WeightMap, tensors: ReadonlyMap<string, CheckpointTensor>, directory: string): void {
  for (const [name, fileName] of index) {
    const expected = join(directory, fileName);
    const received = tensors.get(name)?.file ?? "no file";
    if (received === expected) continue;
    throw new CheckpointError(
      "TENSOR_NOT_IN_FILE",
      `tensor ${JSON.stringify(name)}: expected it in ${expected}, as ${INDEX_FILE} says, but found it in ${received}`,
      { tensor: name, expected, received, file: expected },
    );
  }
  for (const [name, { file }] of tensors) {
    if (index.has(name)) continue;
    throw new CheckpointError(
      "TENSOR_NOT_IN_INDEX",
      `tensor ${JSON.stringify(name)} in ${file}: expected it to be listed in ${INDEX_FILE} but it is not`,
      { tensor: name, file, expected: `an entry in ${INDEX_FILE}`, received: "none" },
    );
  }
}
