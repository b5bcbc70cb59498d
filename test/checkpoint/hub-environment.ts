/** A hub stub and a cache for each test, and the repository that most tests serve. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { ResolvedModel } from "../../src/checkpoint/model-dir.js";
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import { temporaryFolder, vectorsBytes } from "./files.js";
import { HubStub } from "./hub-stub.js";

export const FIRST = "model-00001-of-00002.safetensors";
export const SECOND = "model-00002-of-00002.safetensors";
const INDEX = JSON.stringify({ weight_map: { a: FIRST, b: SECOND } });
export const WEIGHTS = vectorsBytes({ a: [1, 2, 3] });

/** What is needed of the repository that most tests serve. */
export const NEEDED: Readonly<Record<string, string | Uint8Array>> = {
  "config.json": '{"model_type":"llama"}',
  "generation_config.json": "{}",
  "tokenizer.json": '{"model":{}}',
  "tokenizer_config.json": '{"bos_token":"<s>"}',
  "chat_template.jinja": "{{ messages }}",
  "model.safetensors.index.json": INDEX,
  [FIRST]: WEIGHTS,
  [SECOND]: vectorsBytes({ b: [4] }),
};

/** What it has besides. */
const SURPLUS: Readonly<Record<string, string | Uint8Array>> = {
  ".gitattributes": "* text",
  "README.md": "# tiny",
  "pytorch_model.bin": "pickle",
  "pytorch_model.bin.index.json": "{}",
  "consolidated.safetensors": vectorsBytes({ other: [9] }),
  "onnx/config.json": "{}",
  "original/model.safetensors": vectorsBytes({ other: [9] }),
};

const VARIABLES = ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"];

export interface HubEnvironment {
  readonly hub: HubStub;
  /** HF_HOME */
  readonly home: string;
  write(name: string, content: string): string;
  /** A path in the cached repository's folder. */
  inCache(...path: readonly string[]): string;
  /** Everything below HF_HOME whose name says that it is half written. */
  incomplete(): string[];
}

/**
 * Starts a stub before each test, with HF_HOME in a temporary folder and no other HF_ variable set, and puts the
 * environment back after it; call it inside `describe`.
 */
export function hubEnvironment(): HubEnvironment {
  const folder = temporaryFolder();
  const saved = new Map<string, string | undefined>();
  let hub: HubStub | undefined;
  beforeEach(async () => {
    for (const name of VARIABLES) {
      saved.set(name, process.env[name]);
      delete process.env[name];
    }
    hub = await HubStub.start();
    process.env["HF_ENDPOINT"] = hub.endpoint;
    process.env["HF_HOME"] = folder.path;
    hub.commit({ ...NEEDED, ...SURPLUS });
  });
  afterEach(async () => {
    await hub?.stop();
    for (const [name, value] of saved) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });
  return {
    get hub() {
      if (hub === undefined) throw new Error("the stub is started before each test");
      return hub;
    },
    get home() {
      return folder.path;
    },
    write: (name, content) => folder.write(name, content),
    inCache: (...path) => join(folder.path, "hub", "models--org--tiny", ...path),
    incomplete: () =>
      readdirSync(folder.path, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".incomplete")),
  };
}

/** Names of the tensors of a resolved model; its files are closed again. */
export async function tensorsOf({ path }: ResolvedModel): Promise<string[]> {
  const checkpoint = await safetensorsLoader.open(path);
  checkpoint.close();
  return [...checkpoint.tensors.keys()];
}
