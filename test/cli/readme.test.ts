import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { SafetensorsDirectory } from "../../src/checkpoint/safetensors-directory.js";
import { bf16ToF32 } from "../../src/core/dtype.js";
import { cli } from "./cli-process.js";
import { addTokenizer, goldenPrompts, TINY_LLAMA, testFolder } from "./models.js";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const page = (name: string): string => readFileSync(join(root, name), "utf8");

/** The code of a page in a language, block by block. */
function blocks(text: string, language: string): string[] {
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(([, code = ""]) => code);
}

/** Writes a model's weights as float32 NumPy files, by the format's specification (version 1.0). */
function writeNpyModel(source: string, target: string): void {
  mkdirSync(join(target, "weights"), { recursive: true });
  writeFileSync(join(target, "config.json"), readFileSync(join(source, "config.json")));
  const checkpoint = SafetensorsDirectory.open(source);
  for (const tensor of checkpoint.tensors.values()) {
    const { name, shape } = tensor;
    const bits = new Uint16Array(shape.reduce((product, extent) => product * extent, 1));
    tensor.read(new Uint8Array(bits.buffer), 0);
    const values = Float32Array.from(bits, bf16ToF32);
    const tuple = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
    const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${tuple}), }`;
    const header = Buffer.from(`${text.padEnd(64 * Math.ceil((text.length + 11) / 64) - 11)}\n`);
    const start = Buffer.from("\x93NUMPY\x01\x00\0\0", "latin1");
    start.writeUInt16LE(header.length, 8);
    writeFileSync(
      join(target, "weights", `${name}.npy`),
      Buffer.concat([start, header, new Uint8Array(values.buffer)]),
    );
  }
  checkpoint.close();
}

describe("the code in the documentation", () => {
  const models = testFolder();
  let folder = "";
  before(() => {
    // Inside the checkout, where `shardloom` resolves as it does for its users.
    folder = mkdtempSync(join(root, "dist", "documentation-"));
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  it("README.md: the API's example streams an answer and ends", () => {
    const [example = ""] = blocks(page("README.md"), "js");
    const model = models.model("example", addTokenizer);
    assert.match(example, /model: "HuggingFaceTB\/SmolLM2-135M-Instruct"/);
    const script = join(folder, "example.mjs");
    writeFileSync(script, example.replace("HuggingFaceTB/SmolLM2-135M-Instruct", model));
    assert.equal(execFileSync(process.execPath, [script], { encoding: "utf8" }).length, 100);
  });

  it("docs/plugins.md: the plugin loads a model on two ranks, and its tokens are transformers'", async () => {
    const [plugin = "", loader = ""] = blocks(page("docs/plugins.md"), "js");
    assert.ok(
      blocks(page("README.md"), "js").some((code) => plugin.endsWith(code)),
      "README.md has another plugin",
    );
    writeFileSync(join(folder, "npy.mjs"), plugin);
    writeFileSync(join(folder, "npy-loader.mjs"), loader);
    const model = join(models.path, "npy");
    writeNpyModel(TINY_LLAMA, model);
    const prompt = goldenPrompts(TINY_LLAMA)[1];
    assert.ok(prompt !== undefined);
    const flags = ["--prompt-ids", prompt.promptIds.join(","), "--max-tokens", "32", "--json"];
    const args = ["--plugin", join(folder, "npy.mjs"), "--model", model, "--tp", "2", ...flags];
    const { stdout, stderr } = await cli(["generate", ...args]);
    assert.equal(stderr, "");
    assert.deepEqual(JSON.parse(stdout).outputs[0].token_ids, prompt.generatedIds);
  });

  it("docs/plugins.md: the checkpoint quantizer writes signs and mean magnitudes of every row", async () => {
    const quantizer = blocks(page("docs/plugins.md"), "js").find((code) => code.startsWith("// signs.mjs"));
    assert.ok(quantizer !== undefined);
    writeFileSync(join(folder, "signs.mjs"), quantizer);
    const out = join(models.path, "signs");
    const [line = ""] = blocks(page("docs/plugins.md"), "sh").filter((code) => code.includes("quantize"));
    const args = line.trim().split(" ").slice(2);
    const places = new Map([
      ["./signs.mjs", join(folder, "signs.mjs")],
      ["./llama", TINY_LLAMA],
      ["./llama-signs", out],
    ]);
    const { code, stderr } = await cli(args.map((arg) => places.get(arg) ?? arg));
    assert.equal(code, 0, stderr);
    const name = "model.layers.1.mlp.up_proj.weight";
    const [source, written] = [SafetensorsDirectory.open(TINY_LLAMA), SafetensorsDirectory.open(out)];
    const bits = new Uint16Array(256 * 128);
    source.tensors.get(name)?.read(new Uint8Array(bits.buffer), 0);
    const values = [...bits].map(bf16ToF32);
    const signs = new Int8Array(values.length);
    const scales = new Float32Array(256);
    written.tensors.get(name)?.read(new Uint8Array(signs.buffer), 0);
    written.tensors.get(`${name}.scales`)?.read(new Uint8Array(scales.buffer), 0);
    assert.deepEqual(
      [...signs],
      values.map((value) => (value < 0 ? -1 : 1)),
    );
    scales.forEach((scale, row) => {
      const magnitudes = values.slice(row * 128, (row + 1) * 128).map(Math.abs);
      const mean = magnitudes.reduce((sum, value) => sum + value, 0) / 128;
      assert.ok(Math.abs(scale - mean) < 1e-5 * mean, `row ${row}: expected ${mean} but received ${scale}`);
    });
    source.close();
    written.close();
  });

  it("README.md shows flags and commands that exist", async () => {
    const shell = blocks(page("README.md"), "sh").join("\n").split("\n");
    const lines = shell.filter((line) => line.includes("npx shardloom"));
    assert.ok(lines.length >= 4);
    for (const line of lines) {
      const [, words = ""] = /npx shardloom ((?:[a-z]+ ?)+)/.exec(line) ?? [];
      const { code, stdout } = await cli(["help", ...words.trim().split(" ").slice(0, 1)]);
      assert.equal(code, 0, line);
      // Of a command with commands of its own, those as well.
      const own = words.trim().split(" ").length > 1 ? (await cli([...words.trim().split(" "), "--help"])).stdout : "";
      const known = new Set(`${stdout}${own}`.match(/--[a-z][a-z-]*/g));
      for (const flag of line.match(/--[a-z][a-z-]*/g) ?? []) assert.ok(known.has(flag), `${flag} in: ${line}`);
    }
  });

  it("links to files that exist", () => {
    const docs = readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md"));
    for (const name of ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", ...docs.map((doc) => `docs/${doc}`)]) {
      for (const [, target = ""] of page(name).matchAll(/\]\(([^)#:]+)\)/g)) {
        assert.ok(existsSync(join(root, dirname(name), target)), `${name} links to ${target}`);
      }
    }
  });
});
