/** Models for the tests of the command line: copies of a fixture, whole or damaged. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fixture } from "../fixture.js";

export const TINY_LLAMA = fixture("tiny/llama/bf16");
export const TINY_LLAMA_VOCABULARY = 500;

interface GoldenPrompt {
  readonly promptIds: readonly number[];
  readonly generatedIds: readonly number[];
  readonly steps: readonly { readonly top: readonly [number, number][]; readonly logsumexp: number }[];
}

/** The prompts of a fixture's golden file. */
export function goldenPrompts(model: string): readonly GoldenPrompt[] {
  return JSON.parse(readFileSync(`${model}.golden.json`, "utf8")).prompts;
}

/** A folder made before the tests of a `describe` and removed after them. */
export function testFolder(): {
  readonly path: string;
  /** A copy of tiny Llama, with files changed by `change`. */
  model(name: string, change?: (directory: string) => void): string;
  write(name: string, content: string): string;
} {
  let path = "";
  before(() => {
    path = mkdtempSync(join(tmpdir(), "shardloom-cli-"));
  });
  after(() => rmSync(path, { recursive: true, force: true }));
  return {
    get path() {
      return path;
    },
    model(name, change) {
      const directory = join(path, name);
      cpSync(TINY_LLAMA, directory, { recursive: true });
      change?.(directory);
      return directory;
    },
    write(name, content) {
      writeFileSync(join(path, name), content);
      return join(path, name);
    },
  };
}

/** Sets fields of a model's config.json. */
export function setConfig(directory: string, fields: Readonly<Record<string, unknown>>): void {
  const file = join(directory, "config.json");
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), ...fields }));
}

/** What a safetensors header says of one tensor. */
interface HeaderEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

type Header = Record<string, HeaderEntry>;

/** Rewrites the header of a model's only weight file; `change` edits it in place and may return other data. */
export function setHeader(directory: string, change: (header: Header, data: Buffer) => Buffer | undefined): void {
  const file = join(directory, "model.safetensors");
  const bytes = readFileSync(file);
  const end = 8 + Number(bytes.readBigUInt64LE(0));
  const header: Header = JSON.parse(bytes.subarray(8, end).toString("utf8"));
  const data = bytes.subarray(end);
  const changed = change(header, data) ?? data;
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(file, Buffer.concat([length, text, changed]));
}

/**
 * Gives a model of 500 ids a tokenizer in which every id is one printable character, so that text and ids say the same,
 * and a chat template.
 */
export function addTokenizer(directory: string): void {
  const vocab = Object.fromEntries(Array.from({ length: TINY_LLAMA_VOCABULARY }, (_, id) => [characterOf(id), id]));
  const tokenizer = {
    version: "1.0",
    model: { type: "BPE", vocab, merges: [], unk_token: null },
    decoder: { type: "Fuse" },
    added_tokens: [],
  };
  const template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]";
  writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(tokenizer));
  writeFileSync(join(directory, "tokenizer_config.json"), JSON.stringify({ chat_template: template }));
}

/** The text of ids in the tokenizer of `addTokenizer`. */
export function textOf(ids: readonly number[]): string {
  return ids.map(characterOf).join("");
}

/** Printable ASCII first, then CJK ideographs. */
function characterOf(id: number): string {
  return String.fromCharCode(id < 95 ? 0x20 + id : 0x4e00 + id);
}
