import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { fixture } from "./fixture.js";

const root = fileURLToPath(new URL("../../", import.meta.url));

const SCRIPT = `
import { launch, ShardloomError } from "shardloom";
import { CheckpointError, PLUGIN_API_VERSION } from "shardloom/plugin";
import { TurnsExecutor } from "shardloom/testing";
const engine = await launch({ model: process.argv[2], tensorParallelSize: 2 });
const tokenIds = [];
for await (const delta of engine.generate({ promptTokenIds: [433], sampling: { maxTokens: 4 } })) tokenIds.push(...delta.tokenIds);
await engine.close();
const alike = new CheckpointError("ANY", "", {}) instanceof ShardloomError;
console.log(JSON.stringify({ tokenIds, api: PLUGIN_API_VERSION, alike, testing: typeof TurnsExecutor }));
`;

describe("the npm package", () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "shardloom-package-"));
  });
  after(function () {
    this.timeout(60_000);
    rmSync(folder, { recursive: true, force: true });
  });

  it("installs from its tarball into an empty project, builds its addon there, and starts its workers", function () {
    this.timeout(600_000);
    const npm = (args: string[], cwd: string): string =>
      execFileSync("npm", args, { cwd, encoding: "utf8", stdio: "pipe" });
    const pack = (of: string): string => {
      const [packed] = JSON.parse(npm(["pack", "--json", "--ignore-scripts", "--pack-destination", folder], of));
      return join(folder, packed.filename);
    };
    const packages = [pack(root), pack(join(root, "plugins", "gguf"))];
    const project = join(folder, "project");
    mkdirSync(project);
    writeFileSync(join(project, "package.json"), JSON.stringify({ name: "empty", version: "1.0.0", type: "module" }));
    npm(["install", "--prefer-offline", "--no-audit", "--no-fund", ...packages], project);
    writeFileSync(join(project, "main.mjs"), SCRIPT);
    const golden = JSON.parse(readFileSync(fixture("tiny/llama/bf16.golden.json"), "utf8"));
    const expected = { tokenIds: golden.prompts[0].generatedIds.slice(0, 4), api: 1, alike: true, testing: "function" };
    for (const kernels of ["native", "reference"]) {
      const env = { ...process.env, SHARDLOOM_KERNELS: kernels };
      const output = execFileSync(process.execPath, ["main.mjs", fixture("tiny/llama/bf16")], {
        cwd: project,
        encoding: "utf8",
        env,
      });
      assert.deepEqual(JSON.parse(output), expected, `${kernels} kernels`);
    }
    const program = (...args: string[]): string =>
      execFileSync(join(project, "node_modules", ".bin", "shardloom"), args, { cwd: project, encoding: "utf8" }).trim();
    const gguf = join(root, "plugins", "gguf", "test", "fixtures", "model.gguf");
    assert.match(program("generate", "--model", gguf, "--tp", "2", "--prompt-ids", "1,2", "--max-tokens", "2"), /\S/);
    assert.equal(program("--version"), JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version);
  });

  it("without a compiler, the install goes on after one warning", () => {
    const copy = join(folder, "no-compiler");
    for (const name of ["scripts", "package.json", "CMakeLists.txt", "native"]) {
      cpSync(join(root, name), join(copy, name), { recursive: true });
    }
    const env = { ...process.env, NODE_PATH: join(root, "node_modules"), PATH: "/nonexistent" };
    const script = join(copy, "scripts", "build-native.mjs");
    const optional = spawnSync(process.execPath, [script, "--optional"], { encoding: "utf8", env });
    assert.equal(optional.status, 0, optional.stderr);
    assert.equal(optional.stderr.match(/warning/g)?.length, 1, optional.stderr);
    assert.equal(spawnSync(process.execPath, [script], { encoding: "utf8", env }).status, 1);
  });

  it("without the addon, all ranks compute with the reference kernels after one warning", () => {
    const env: NodeJS.ProcessEnv = { ...process.env, SHARDLOOM_NATIVE_ADDON: join(folder, "absent.node") };
    delete env["SHARDLOOM_KERNELS"];
    const script = SCRIPT.replaceAll('"shardloom', `"${pathToFileURL(join(root, "bundle", "src", "lib")).href}`);
    const main = join(folder, "main.mjs");
    const entries = { "/plugin": "/plugin.js", "/testing": "/testing.js", "": "/index.js" };
    const source = Object.entries(entries).reduce(
      (text, [from, to]) => text.replace(`bundle/src/lib${from}"`, `bundle/src/lib${to}"`),
      script,
    );
    writeFileSync(main, source);
    const run = spawnSync(process.execPath, [main, fixture("tiny/llama/bf16")], { encoding: "utf8", env });
    assert.equal(run.status, 0, run.stderr);
    assert.equal(run.stderr.trim().split("\n").length, 1, run.stderr);
    assert.match(run.stderr, /reference kernels/);
    assert.equal(JSON.parse(run.stdout).tokenIds.length, 4);
  });
});
