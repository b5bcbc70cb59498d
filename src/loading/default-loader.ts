/** The model loader that shardloom itself brings: a Hugging Face directory with safetensors weights. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { isPickle, isSafetensors } from "../checkpoint/index-file.js";
import type { ReadObserver } from "../checkpoint/random-access-file.js";
import { listNames, SafetensorsDirectory } from "../checkpoint/safetensors-directory.js";
import { CheckpointError, describeValue } from "../core/errors.js";
import { isJsonObject, type JsonObject, readJsonObject, readTextFile } from "../core/json.js";
import type { ModelDescription, ModelLoader } from "./model-loader.js";

/**
 * Reads a directory as Hugging Face lays it out. `matches` also claims a directory with pickled weights and a lone
 * weight file: what can be said about those is said best here.
 */
export const safetensorsLoader: ModelLoader = {
  format: "safetensors",
  matches,
  describe: async (path) => describeDirectory(path),
  readConfig: async (path) => readDirectoryConfig(path),
  open: async (path, _expected, reader) => openDirectory(path, reader?.observer),
};

function matches(path: string): boolean {
  if (!existsSync(path)) return false;
  if (!statSync(path).isDirectory()) return isSafetensors(path);
  const names = listNames(path);
  // The index of a repository that is still being downloaded counts: the error will name the missing files.
  return names.some(
    (name) => isSafetensors(name) || isSafetensors(name.replace(/\.index\.json$/, "")) || isPickle(name),
  );
}

function openDirectory(path: string, observer: ReadObserver | undefined): Checkpoint {
  checkDirectory(path);
  return SafetensorsDirectory.open(path, observer);
}

/** config.json of the model in a directory. */
export function readDirectoryConfig(path: string): JsonObject {
  checkDirectory(path);
  return readJsonObject(join(path, "config.json"));
}

/** Everything about the model in a directory but its weights. */
export function describeDirectory(path: string): ModelDescription {
  const config = readDirectoryConfig(path);
  const tokenizer = readOptional(join(path, "tokenizer.json"));
  const tokenizerConfig = readOptional(join(path, "tokenizer_config.json"));
  return {
    config,
    generationConfig: readOptional(join(path, "generation_config.json")),
    tokenizer: tokenizer === null || tokenizerConfig === null ? null : { tokenizer, config: tokenizerConfig },
    chatTemplate: readChatTemplate(path, tokenizerConfig),
  };
}

function readOptional(file: string): JsonObject | null {
  return existsSync(file) ? readJsonObject(file) : null;
}

/**
 * chat_template.jinja, which newer repositories have, else `chat_template` of tokenizer_config.json: the template, or a
 * list of named ones of which "default" is taken. Throws CheckpointError `INVALID_CHAT_TEMPLATE`.
 */
function readChatTemplate(path: string, tokenizerConfig: JsonObject | null): string | null {
  const file = join(path, "chat_template.jinja");
  if (existsSync(file)) return readTextFile(file);
  const template = tokenizerConfig?.["chat_template"];
  if (template === undefined || template === null) return null;
  if (typeof template === "string") return template;
  if (Array.isArray(template)) {
    const chosen = template.find((entry) => isJsonObject(entry) && entry["name"] === "default");
    if (chosen === undefined) return null;
    if (isJsonObject(chosen) && typeof chosen["template"] === "string") return chosen["template"];
  }
  const source = join(path, "tokenizer_config.json");
  throw new CheckpointError(
    "INVALID_CHAT_TEMPLATE",
    `${source}: expected chat_template to be a string or a list of {name, template} but received ${describeValue(template)}`,
    { file: source, expected: "a string or a list of {name, template}", received: describeValue(template) },
  );
}

/** Throws CheckpointError `NOT_A_DIRECTORY` for a file: its config.json and tokenizer lie beside it, in the directory. */
function checkDirectory(path: string): void {
  if (!existsSync(path) || statSync(path).isDirectory()) return;
  throw new CheckpointError(
    "NOT_A_DIRECTORY",
    `${path}: expected the model's directory, with config.json beside the weights, but received a file`,
    { file: path, expected: "a directory", received: "a file" },
  );
}
