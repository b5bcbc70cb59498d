/** Everything of a model's directory but its weights, written for weights that were converted. */
import { copyFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { companionFiles } from "../checkpoint/companion-files.js";
import { setMembers } from "../checkpoint/json-members.js";
import { OutputFile, writeFailed } from "../checkpoint/output-file.js";
import type { FloatDType } from "../core/dtype.js";
import { type JsonObject, readTextFile } from "../core/json.js";
import type { ModelDescription } from "./model-loader.js";
import { tokenizerJson } from "./tokenizer-files.js";

/** Where a converted model comes from. */
export interface ModelSource {
  /** Local path. */
  readonly path: string;
  readonly description: ModelDescription;
  /** Whether the path is a directory as Hugging Face lays it out, whose files can stay as they are. */
  readonly isHuggingFace: boolean;
}

/**
 * Writes config.json with some members set (JSON texts by key), and what else describes the model. Throws ShardloomError
 * `WRITE_FAILED`, CheckpointError for files of the source that cannot be read.
 */
export function writeModelFiles(directory: string, source: ModelSource, members: ReadonlyMap<string, string>): void {
  const { path, description, isHuggingFace } = source;
  if (isHuggingFace) copyCompanions(path, directory);
  else writeDescription(directory, description);
  const config = isHuggingFace ? readTextFile(join(path, "config.json")) : formatJson(description.config);
  writeTextFile(join(directory, "config.json"), setMembers(config, members));
}

const TORCH_DTYPES: Readonly<Record<FloatDType, string>> = { f32: "float32", bf16: "bfloat16", f16: "float16" };

/** Members of config.json that say in which dtype unquantized weights are. */
export function dtypeMembers(dtype: FloatDType, config: JsonObject): readonly (readonly [string, string])[] {
  // transformers 5 calls it dtype and reads both.
  const known = ["dtype", "torch_dtype"].filter((key) => config[key] !== undefined);
  return (known.length === 0 ? ["torch_dtype"] : known).map((key) => [key, JSON.stringify(TORCH_DTYPES[dtype])]);
}

/** A new text file. Throws ShardloomError `WRITE_FAILED`. */
export function writeTextFile(path: string, text: string): void {
  const file = OutputFile.create(path);
  try {
    file.write(new TextEncoder().encode(text), 0);
    file.sync();
  } finally {
    file.close();
  }
}

/** JSON as people read it. */
export function formatJson(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

function copyCompanions(from: string, to: string): void {
  for (const name of companionFiles(readdirSync(from))) {
    // Links lead to files in the hub's cache.
    if (statSync(join(from, name), { throwIfNoEntry: false })?.isFile() !== true) continue;
    try {
      copyFileSync(join(from, name), join(to, name));
    } catch (error) {
      throw writeFailed(join(to, name), error);
    }
  }
}

function writeDescription(directory: string, description: ModelDescription): void {
  const { generationConfig, tokenizer, chatTemplate } = description;
  const files: readonly (readonly [string, string | null])[] = [
    ["generation_config.json", generationConfig === null ? null : formatJson(generationConfig)],
    ["tokenizer.json", tokenizer === null ? null : formatJson(tokenizerJson(tokenizer))],
    ["tokenizer_config.json", tokenizer === null ? null : formatJson(tokenizer.config)],
    ["chat_template.jinja", chatTemplate],
  ];
  for (const [name, text] of files) if (text !== null) writeTextFile(join(directory, name), text);
}
