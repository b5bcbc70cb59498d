import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { loadedAddon } from "./tensors.js";

const module = new URL("../../src/kernels/select.js", import.meta.url).href;
const program = `
  const { createKernels } = await import(${JSON.stringify(module)});
  const warnings = [];
  const result = { warnings };
  try {
    const { backend, isa } = createKernels("auto", (message) => warnings.push(message));
    Object.assign(result, { backend, isa });
  } catch (error) {
    Object.assign(result, { error: error.name, code: error.code, message: error.message });
  }
  console.log(JSON.stringify(result));`;

/** What createKernels does in a process of its own, for it reads the environment once. */
function select(environment: Readonly<Record<string, string>>): Record<string, unknown> {
  const env = { ...process.env, SHARDLOOM_KERNELS: "", SHARDLOOM_ISA: "", ...environment };
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "--eval", program], {
    env,
    encoding: "utf8",
  });
  assert.equal(stderr, "");
  return JSON.parse(stdout);
}

const missing = { SHARDLOOM_NATIVE_ADDON: "/nonexistent/shardloom.node" };

describe("createKernels", () => {
  it("uses the addon with the best instruction set of the machine", () => {
    assert.deepEqual(select({}), { warnings: [], backend: "native", isa: loadedAddon().supportedIsas[0] });
  });

  it("uses the instruction set that SHARDLOOM_ISA names", () => {
    for (const isa of loadedAddon().supportedIsas) {
      assert.deepEqual(select({ SHARDLOOM_ISA: isa }), { warnings: [], backend: "native", isa });
    }
  });

  it("refuses an instruction set that this machine lacks, naming those it has", () => {
    const { error, code, message, warnings } = select({ SHARDLOOM_ISA: "sse9" });
    assert.deepEqual([error, code, warnings], ["OptionError", "UNSUPPORTED_ISA", []]);
    assert.equal(
      message,
      `expected SHARDLOOM_ISA to be an instruction set of this machine (${loadedAddon().supportedIsas.join(", ")}) but received "sse9"`,
    );
  });

  it("falls back to the reference kernels with one warning that says why", () => {
    const { warnings, ...rest } = select(missing);
    assert.deepEqual(rest, { backend: "reference", isa: "typescript" });
    assert.match(
      String(warnings),
      /^the native addon cannot be used: \/nonexistent\/shardloom\.node: .*reference kernels are used instead$/s,
    );
    assert.equal(Array.isArray(warnings) && warnings.length, 1);
  });

  it("uses the reference kernels without a warning when told to", () => {
    const expected = { warnings: [], backend: "reference", isa: "typescript" };
    assert.deepEqual(select({ SHARDLOOM_KERNELS: "reference" }), expected);
    assert.deepEqual(select({ SHARDLOOM_KERNELS: "reference", ...missing }), expected);
  });

  it("fails when told to use an addon that is not there", () => {
    const { error, code, message } = select({ SHARDLOOM_KERNELS: "native", ...missing });
    assert.deepEqual([error, code], ["ShardloomError", "NATIVE_KERNELS_UNAVAILABLE"]);
    assert.match(String(message), /\/nonexistent\/shardloom\.node/);
  });

  it("refuses kernels of another name", () => {
    assert.equal(select({ SHARDLOOM_KERNELS: "gpu" })["code"], "INVALID_KERNELS");
  });
});
