/** Models to quantize, plugins that take part, and what comes of it. */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import { dtypeBytes } from "../../src/core/dtype.js";
import { ShardloomError } from "../../src/core/errors.js";
import { elementCount } from "../../src/core/tensor.js";
import { type QuantizeOptions, type QuantizeReport, quantize } from "../../src/index.js";
import { fixture } from "../fixture.js";

export const BITSANDBYTES = "@shardloom/bitsandbytes";

export interface QuantizationFolder {
  readonly path: string;
  /** What is in the folder where results appear, hidden or not. */
  readonly results: readonly string[];
  /** Quantizes a fixture, or a model at a path, with bitsandbytes unless other plugins are named. */
  quantize(options: Partial<QuantizeOptions> & Pick<QuantizeOptions, "model" | "format">): Promise<QuantizeReport>;
  /** A copy of a fixture that `change` edits. */
  model(name: string, change: (directory: string) => void): string;
  /** A plugin of one checkpoint quantizer, "test", whose plan is the JavaScript given. */
  plugin(plan: string): string;
  write(name: string, content: string): string;
}

/** A folder made before each test and removed after it; call it inside `describe`. */
export function quantizationFolder(): QuantizationFolder {
  let path = "";
  let results = "";
  beforeEach(() => {
    path = mkdtempSync(join(tmpdir(), "shardloom-quantize-"));
    results = mkdtempSync(join(path, "results-"));
  });
  afterEach(() => rmSync(path, { recursive: true, force: true }));
  const write = (name: string, content: string): string => {
    writeFileSync(join(path, name), content);
    return join(path, name);
  };
  return {
    get path() {
      return path;
    },
    get results() {
      return readdirSync(results);
    },
    quantize: ({ model, ...options }) => {
      const isFixture = !model.startsWith("/");
      const source = isFixture ? fixture(`tiny/${model}`) : model;
      return quantize({ plugins: [BITSANDBYTES], out: join(results, "out"), ...options, model: source });
    },
    model(name, change) {
      const directory = join(path, "model");
      cpSync(fixture(`tiny/${name}`), directory, { recursive: true });
      change(directory);
      return directory;
    },
    plugin: (plan) =>
      write(
        "plugin.mjs",
        `export const plugin = {
          name: "test",
          apiVersion: 1,
          register: (context) => context.registerCheckpointQuantizer("test", { plan: () => (${plan}) }),
        };`,
      ),
    write,
  };
}

/** Every tensor of a checkpoint: dtype, shape and bytes. */
export function tensorsOf(directory: string): ReadonlyMap<string, unknown> {
  const checkpoint = SafetensorsDirectory.open(directory);
  const tensors = [...checkpoint.tensors.values()].map((tensor) => {
    const bytes = Buffer.alloc(elementCount(tensor.shape) * dtypeBytes(tensor.dtype));
    tensor.read(bytes, 0);
    return [tensor.name, [tensor.dtype, tensor.shape, bytes.toString("base64")]] as const;
  });
  checkpoint.close();
  return new Map(tensors.toSorted(([a], [b]) => (a < b ? -1 : 1)));
}

export function readJson(directory: string, name: string) {
  return JSON.parse(readFileSync(join(directory, name), "utf8"));
}

/** Whether an error has a code, and words in its message. */
export function hasCode(code: string, ...words: string[]): (error: unknown) => boolean {
  return (error) => {
    if (!(error instanceof ShardloomError)) return false;
    assert.equal(error.code, code, error.message);
    for (const word of words) assert.ok(error.message.includes(word), `${word} is not in: ${error.message}`);
    return true;
  };
}
