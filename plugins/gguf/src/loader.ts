import { closeSync, openSync, readdirSync, readSync, type Stats, statSync } from "node:fs";
import { join } from "node:path";
import {
  type Checkpoint,
  CheckpointError,
  type CheckpointReader,
  type JsonObject,
  type ModelDescription,
  type ModelLoader,
  RandomAccessFile,
  UnsupportedError,
} from "shardloom/plugin";
import { createCheckpoint } from "./checkpoint.js";
import { MAGIC, readContainer } from "./container.js";
import { llamaConfig, statesVocabularySize } from "./llama-config.js";
import { nameLlamaTensors, ROPE_FREQUENCIES } from "./llama-tensors.js";
import { Metadata } from "./metadata.js";
import { readSpecialTokens, type SpecialTokens } from "./special-tokens.js";
import { layOutTensors, type StoredTensor } from "./tensor-layout.js";
import { TensorReader } from "./tensor-reader.js";
import { describeTokenizer } from "./tokenizer.js";

/** Values of `general.architecture` that this plugin can describe. */
const ARCHITECTURES = ["llama"];

/** More divisors than any head size has pairs. */
const MAX_ROPE_FREQUENCIES = 4096;

/**
 * A model loader for .gguf files, and for directories that hold exactly one of them and no safetensors.
 *
 * Besides FILE_NOT_FOUND, its methods throw CheckpointErrors `INVALID_MAGIC`, `INVALID_HEADER`, `TRUNCATED_FILE`,
 * `INVALID_METADATA`, `UNEXPECTED_TENSOR`, `SHAPE_MISMATCH`, `SHORT_READ`, and UnsupportedErrors that name what the file
 * has and what is supported.
 */
export function createGgufLoader(): ModelLoader {
  return { format: "gguf", matches, describe, readConfig, open };
}

function matches(path: string): boolean {
  const stats = statOrNull(path);
  if (stats === null) return false;
  if (stats.isDirectory()) return ggufFiles(path).length === 1 && !holdsSafetensors(path);
  // A damaged file with the right name is ours too: the error that says how it is damaged comes from here.
  return stats.isFile() && (isGgufName(path) || startsWithMagic(path));
}

/** Metadata that grows with the vocabulary. */
const VOCABULARY = ["tokens", "scores", "token_type", "merges"].map((name) => `tokenizer.ggml.${name}`);

async function describe(path: string): Promise<ModelDescription> {
  const file = RandomAccessFile.open(resolveFile(path));
  try {
    const header = readHeader(file, () => true);
    const { metadata } = header;
    const special = readSpecialTokens(metadata);
    const config = configOf(file, header, special);
    return {
      config,
      generationConfig: generationConfig(config, special),
      tokenizer: describeTokenizer(metadata, special, metadata.count("llama.context_length")),
      chatTemplate: metadata.optionalString("tokenizer.chat_template"),
    };
  } finally {
    file.close();
  }
}

async function readConfig(path: string): Promise<JsonObject> {
  const file = RandomAccessFile.open(resolveFile(path));
  try {
    const header = readHeader(file, (key) => !VOCABULARY.includes(key));
    if (statesVocabularySize(header)) return configOf(file, header, readSpecialTokens(header.metadata));
  } finally {
    file.close();
  }
  return (await describe(path)).config;
}

function configOf(file: RandomAccessFile, { metadata, tensors }: Header, special: SpecialTokens): JsonObject {
  const config = llamaConfig(metadata, tensors, special, readRopeFrequencies(file, tensors));
  nameLlamaTensors(metadata, tensors);
  return config;
}

async function open(path: string, _expected?: unknown, reader?: CheckpointReader): Promise<Checkpoint> {
  const file = RandomAccessFile.open(resolveFile(path), reader?.observer);
  try {
    const { metadata, tensors } = readHeader(file, (key) => !key.startsWith("tokenizer."));
    return createCheckpoint(file, nameLlamaTensors(metadata, tensors));
  } catch (error) {
    file.close();
    throw error;
  }
}

interface Header {
  readonly metadata: Metadata;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

function readHeader(file: RandomAccessFile, keep: (key: string) => boolean): Header {
  const container = readContainer(file, keep);
  const metadata = new Metadata(file.path, container.metadata);
  checkKind(metadata);
  return { metadata, tensors: layOutTensors(container, file) };
}

function checkKind(metadata: Metadata): void {
  const kind = metadata.optionalString("general.type") ?? "model";
  if (kind !== "model") throw unsupported(metadata, "general.type", "model", kind);
  const parts = metadata.optionalCount("split.count", 0) ?? 1;
  if (parts > 1)
    throw unsupported(metadata, "split.count", "1 (llama-gguf-split --merge makes one file)", String(parts));
  const architecture = metadata.string("general.architecture");
  if (!ARCHITECTURES.includes(architecture)) {
    throw unsupported(metadata, "general.architecture", ARCHITECTURES.join(", "), architecture);
  }
}

function unsupported(metadata: Metadata, field: string, expected: string, received: string): UnsupportedError {
  return new UnsupportedError(
    "UNSUPPORTED_ARCHITECTURE",
    `${metadata.file}: expected ${field} to be ${expected} but received ${received}`,
    { file: metadata.file, field, expected, received },
  );
}

function generationConfig(config: JsonObject, special: SpecialTokens): JsonObject | null {
  if (special.bos === null && special.eos.length === 0 && special.pad === null) return null;
  return {
    bos_token_id: config["bos_token_id"] ?? null,
    eos_token_id: config["eos_token_id"] ?? null,
    pad_token_id: config["pad_token_id"] ?? null,
  };
}

function readRopeFrequencies(file: RandomAccessFile, tensors: ReadonlyMap<string, StoredTensor>): Float32Array | null {
  const tensor = tensors.get(ROPE_FREQUENCIES);
  if (tensor === undefined) return null;
  const count = tensor.shape[0] ?? 0;
  if (tensor.format.name !== "F32" || tensor.shape.length !== 1 || count > MAX_ROPE_FREQUENCIES) {
    const expected = `at most ${MAX_ROPE_FREQUENCIES} values of type F32`;
    const received = `[${tensor.shape.join(", ")}] of type ${tensor.format.name}`;
    throw new CheckpointError(
      "SHAPE_MISMATCH",
      `${file.path}: expected ${ROPE_FREQUENCIES} to be ${expected} but received ${received}`,
      { file: file.path, tensor: ROPE_FREQUENCIES, expected, received },
    );
  }
  const values = new Float32Array(count);
  new TensorReader(file).read(tensor, "values", new Uint8Array(values.buffer), 0);
  return values;
}

/** The file itself, or the only .gguf file of a directory. */
function resolveFile(path: string): string {
  if (statOrNull(path)?.isDirectory() !== true) return path;
  const files = ggufFiles(path);
  const [only] = files;
  if (only !== undefined && files.length === 1) return join(path, only);
  const received = files.length === 0 ? "none" : files.join(", ");
  throw new CheckpointError("FILE_NOT_FOUND", `${path}: expected exactly one .gguf file but received ${received}`, {
    file: path,
    expected: "one .gguf file",
    received,
  });
}

function isGgufName(name: string): boolean {
  return name.toLowerCase().endsWith(".gguf");
}

function ggufFiles(directory: string): string[] {
  return listOrEmpty(directory).filter(
    (name) => isGgufName(name) && statOrNull(join(directory, name))?.isFile() === true,
  );
}

function holdsSafetensors(directory: string): boolean {
  return listOrEmpty(directory).some((name) => name.endsWith(".safetensors"));
}

function listOrEmpty(directory: string): string[] {
  try {
    return readdirSync(directory).sort();
  } catch {
    return [];
  }
}

function statOrNull(path: string): Stats | null {
  try {
    return statSync(path);
  } catch {
    return null;
  }
}

function startsWithMagic(path: string): boolean {
  try {
    const descriptor = openSync(path, "r");
    try {
      const bytes = new Uint8Array(MAGIC.length);
      return (
        readSync(descriptor, bytes, 0, bytes.length, 0) === bytes.length && String.fromCharCode(...bytes) === MAGIC
      );
    } finally {
      closeSync(descriptor);
    }
  } catch {
    return false;
  }
}
