import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { cli } from "./cli-process.js";
import { addTokenizer, setConfig, setHeader, TINY_LLAMA, testFolder } from "./models.js";

/** A wrong command line: its arguments, and what the one line on stderr and the exit code must be. */
interface Wrong {
  readonly what: string;
  /** Made when the test runs: damaged models are written then. */
  readonly args: () => readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly exitCode: number;
  readonly code: string;
  /** What the message names. */
  readonly names: RegExp;
}

const PROMPT = ["--prompt-ids", "433", "--max-tokens", "2"];

describe("wrong input ends with one line that says what was expected, and a documented exit code:", () => {
  const folder = testFolder();

  /** `generate` with a right model and prompt, and something wrong. */
  const generate = (...args: readonly string[]): string[] => ["generate", "--model", TINY_LLAMA, ...PROMPT, ...args];
  /** `generate` on a model that `damage` has damaged. */
  const damaged = (name: string, damage: (directory: string) => void): string[] => {
    return ["generate", "--model", folder.model(name, damage), ...PROMPT];
  };
  const prompted = (...args: readonly string[]): string[] => ["generate", "--model", TINY_LLAMA, ...args];
  const score = (name: string, content: string): string[] => {
    return ["score", "--model", TINY_LLAMA, "--token-ids", folder.write(name, content)];
  };
  const plugin = (name: string, source: string): string[] => generate("--plugin", folder.write(name, source));

  const commandLines: readonly Wrong[] = [
    { what: "no model", args: () => ["generate", ...PROMPT], exitCode: 2, code: "INVALID_USAGE", names: /--model/ },
    {
      what: "an unknown command",
      args: () => ["genrate"],
      exitCode: 2,
      code: "INVALID_USAGE",
      names: /genrate.*Did you mean generate/,
    },
    {
      what: "an unknown flag",
      args: () => generate("--promt", "x"),
      exitCode: 2,
      code: "INVALID_USAGE",
      names: /--promt.*Did you mean --prompt/,
    },
    { what: "a stray argument", args: () => generate("x"), exitCode: 2, code: "INVALID_USAGE", names: /arguments/ },
    {
      what: "a flag without its value",
      args: () => generate("--tp"),
      exitCode: 2,
      code: "INVALID_USAGE",
      names: /--tp.*missing/,
    },
    {
      what: "dummy weights for a file of weights",
      args: () => ["generate", "--model", folder.write("weights.gguf", "GGUF"), "--load-format", "dummy", ...PROMPT],
      exitCode: 3,
      code: "NOT_A_DIRECTORY",
      names: /weights\.gguf: expected the model's directory or its config\.json/,
    },
    {
      what: "a config alone, and nothing that makes up weights for it",
      args: () => ["generate", "--model", folder.write("lone.json", "{}"), ...PROMPT],
      exitCode: 3,
      code: "UNRECOGNIZED_MODEL",
      names: /a \.json file \(load format "dummy" makes up weights for a config\)/,
    },
    ...["0", "-1", "two", "1.5", "65", ""].map((tp) => ({
      what: `--tp ${JSON.stringify(tp)}`,
      args: () => generate("--tp", tp),
      exitCode: 2,
      code: "INVALID_WORLD_SIZE",
      names: new RegExp(`--tp to be auto or a whole number from 1 to 64 but received "?${tp}"?$`),
    })),
    ...[
      ["--max-tokens", "0"],
      ["--max-tokens", "many"],
      ["--temperature", "-1"],
      ["--temperature", "NaN"],
      ["--top-p", "0"],
      ["--min-p", "2"],
      ["--top-k", "-1"],
      ["--seed", "4294967296"],
      ["--dtype", "f8"],
      ["--kv-cache-dtype", "auto"],
      ["--kv-cache-bytes", "1GB"],
      ["--max-model-len", "0"],
      ["--threads-per-rank", "0"],
      ["--threads-per-rank", "all"],
      ["--threads-per-rank", "1e9"],
      ["--activations", "int4"],
      ["--collective-payload", "f16"],
    ].map(([flag = "", value = ""]) => ({
      what: `${flag} ${value}`,
      args: () => generate(flag, value),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: new RegExp(`^expected ${flag} to be .* but received "${value}"$`),
    })),
    {
      what: "--logprobs without --json",
      args: () => generate("--logprobs", "2"),
      exitCode: 2,
      code: "INVALID_OPTION",
      names: /--json/,
    },
    {
      what: "an empty stop text",
      args: () => generate("--stop", ""),
      exitCode: 2,
      code: "INVALID_SAMPLING_OPTION",
      names: /stop/,
    },
    ...[
      { args: ["profile", "--json", ""], flag: "--json" },
      { args: ["profile", "--html", ""], flag: "--html" },
      { args: ["shard", "--tp", "2", "--out", ""], flag: "--out" },
      { args: ["quantize", "--format", "nf4", "--out", ""], flag: "--out" },
    ].map(({ args, flag }) => ({
      what: `${args[0]} with an empty ${flag}`,
      args: () => [...args, "--model", TINY_LLAMA],
      exitCode: 2,
      code: "INVALID_OPTION",
      names: new RegExp(`^expected ${flag} to be a path but received ""$`),
    })),
    {
      what: "a model without a name",
      args: () => ["generate", "--model", "", ...PROMPT],
      exitCode: 3,
      code: "MODEL_NOT_FOUND",
      names: /^expected a directory, a file or a hub id as model but received ""$/,
    },
    {
      what: "an unknown log level",
      args: () => generate("--log-level", "loud"),
      exitCode: 2,
      code: "INVALID_LOG_LEVEL",
      names: /warn.*"loud"/,
    },
    {
      what: "an unknown log level in the environment",
      args: () => generate(),
      env: { SHARDLOOM_LOG_LEVEL: "loud" },
      exitCode: 2,
      code: "INVALID_LOG_LEVEL",
      names: /warn.*"loud"/,
    },
    {
      what: "unknown kernels in the environment",
      args: () => generate(),
      env: { SHARDLOOM_KERNELS: "fast" },
      exitCode: 2,
      code: "INVALID_KERNELS",
      names: /SHARDLOOM_KERNELS.*"fast"/,
    },
    {
      what: "an unknown load format",
      args: () => generate("--load-format", "pickle"),
      exitCode: 2,
      code: "UNKNOWN_LOAD_FORMAT",
      names: /safetensors.*"pickle"/,
    },
    {
      what: "a context longer than the model's",
      args: () => generate("--max-model-len", "513"),
      exitCode: 2,
      code: "CONTEXT_TOO_LONG",
      names: /--max-model-len to be at most .*512.* received 513/,
    },
    {
      what: "too little memory for the context",
      args: () => generate("--max-model-len", "512", "--kv-cache-bytes", "1000"),
      exitCode: 2,
      code: "KV_CACHE_TOO_SMALL",
      names: /--kv-cache-bytes to be at least \d+ .* received 1000/,
    },
  ];

  const prompts: readonly Wrong[] = [
    { what: "no prompt", args: () => prompted(), exitCode: 2, code: "INVALID_PROMPT", names: /--prompt-ids.*none/ },
    {
      what: "two prompts",
      args: () => prompted("--prompt", "x", "--prompt-ids", "1"),
      exitCode: 2,
      code: "INVALID_PROMPT",
      names: /received --prompt and --prompt-ids/,
    },
    {
      what: "--system without --chat",
      args: () => prompted("--prompt-ids", "1", "--system", "x"),
      exitCode: 2,
      code: "INVALID_PROMPT",
      names: /--chat/,
    },
    {
      what: "prompt ids that are no numbers",
      args: () => prompted("--prompt-ids", "1,x"),
      exitCode: 2,
      code: "INVALID_TOKEN_ID",
      names: /--prompt-ids.*"x"/,
    },
    {
      what: "no prompt ids",
      args: () => prompted("--prompt-ids", " "),
      exitCode: 2,
      code: "EMPTY_PROMPT",
      names: /--prompt-ids/,
    },
    {
      what: "a token id out of range",
      args: () => prompted("--prompt-ids", "1,500"),
      exitCode: 2,
      code: "INVALID_TOKEN_ID",
      names: /--prompt-ids\[1\].*0 to 499.*500/,
    },
    {
      what: "a stop token id out of range",
      args: () => generate("--stop-token-ids", "500"),
      exitCode: 2,
      code: "INVALID_SAMPLING_OPTION",
      names: /--stop-token-ids.*499.*500/,
    },
    {
      what: "a prompt longer than the context",
      args: () => prompted("--prompt-ids", Array(512).fill(1).join(",")),
      exitCode: 2,
      code: "PROMPT_TOO_LONG",
      names: /511.*512/,
    },
    {
      what: "a text on a model without a tokenizer",
      args: () => prompted("--prompt", "hi"),
      exitCode: 3,
      code: "NO_TOKENIZER",
      names: /--prompt-ids/,
    },
    {
      what: "a chat on a model without a chat template",
      args: () => [
        "generate",
        ...["--chat", "hi", "--model"],
        folder.model("no-template", (directory) => {
          addTokenizer(directory);
          writeFileSync(join(directory, "tokenizer_config.json"), "{}");
        }),
      ],
      exitCode: 3,
      code: "NO_CHAT_TEMPLATE",
      names: /chat template/,
    },
    {
      what: "a character that the tokenizer does not know",
      args: () => ["generate", "--prompt", "\u00e9", "--model", folder.model("tokenizer", addTokenizer)],
      exitCode: 2,
      code: "EMPTY_PROMPT",
      names: /prompt/,
    },
    {
      what: "a missing file of token ids",
      args: () => ["score", "--model", TINY_LLAMA, "--token-ids", join(folder.path, "absent.json")],
      exitCode: 2,
      code: "INVALID_TOKEN_IDS_FILE",
      names: /absent\.json/,
    },
    {
      what: "token ids in broken JSON",
      args: () => score("broken.json", "[1, 2"),
      exitCode: 2,
      code: "INVALID_TOKEN_IDS_FILE",
      names: /broken\.json/,
    },
    {
      what: "token ids under another key",
      args: () => score("key.json", '{"tokens":[1,2]}'),
      exitCode: 2,
      code: "INVALID_TOKEN_IDS_FILE",
      names: /"ids"/,
    },
    {
      what: "token ids that are no numbers",
      args: () => score("strings.json", '[1,"2"]'),
      exitCode: 2,
      code: "INVALID_TOKEN_IDS_FILE",
      names: /\[1\].*string/,
    },
    {
      what: "one token id to score",
      args: () => score("one.txt", "433"),
      exitCode: 2,
      code: "EMPTY_PROMPT",
      names: /at least 2/,
    },
  ];

  const models: readonly Wrong[] = [
    {
      what: "a missing file",
      args: () => ["generate", "--model", join(folder.path, "absent.gguf"), ...PROMPT],
      exitCode: 3,
      code: "MODEL_NOT_FOUND",
      names: /absent\.gguf/,
    },
    {
      what: "an empty directory",
      args: () => {
        mkdirSync(join(folder.path, "empty"));
        return ["generate", "--model", join(folder.path, "empty"), ...PROMPT];
      },
      exitCode: 3,
      code: "UNRECOGNIZED_MODEL",
      names: /safetensors.*empty|0 files/,
    },
    {
      what: "a file of another format",
      args: () => ["generate", "--model", folder.write("model.bin", "weights"), ...PROMPT],
      exitCode: 3,
      code: "UNRECOGNIZED_MODEL",
      names: /model\.bin/,
    },
    {
      what: "a .gguf file that is none",
      args: () => ["generate", "--model", folder.write("lying.gguf", "GGML and no more than that"), ...PROMPT],
      exitCode: 3,
      code: "INVALID_MAGIC",
      names: /lying\.gguf/,
    },
    {
      what: "a .gguf file without the plugin for it",
      args: () => ["generate", "--model", folder.write("m.gguf", "GGUF"), ...PROMPT, "--no-default-plugins"],
      exitCode: 3,
      code: "UNRECOGNIZED_MODEL",
      names: /safetensors.*\.gguf file.*--plugin/,
    },
    {
      what: "a missing config.json",
      args: () => damaged("no-config", (directory) => rmSync(join(directory, "config.json"))),
      exitCode: 3,
      code: "FILE_NOT_FOUND",
      names: /config\.json/,
    },
    {
      what: "a broken config.json",
      args: () => damaged("broken-config", (directory) => writeFileSync(join(directory, "config.json"), "{")),
      exitCode: 3,
      code: "INVALID_JSON",
      names: /config\.json/,
    },
    {
      what: "an unknown architecture",
      args: () => damaged("unknown", (directory) => setConfig(directory, { architectures: ["MambaForCausalLM"] })),
      exitCode: 3,
      code: "UNSUPPORTED_ARCHITECTURE",
      names: /LlamaForCausalLM.*MambaForCausalLM/,
    },
    {
      what: "quantized weights that no plugin is there for",
      args: () =>
        damaged("quantized", (directory) => setConfig(directory, { quantization_config: { quant_method: "other" } })),
      exitCode: 3,
      code: "UNKNOWN_QUANTIZATION",
      names: /other/,
    },
    {
      what: "more ranks than the model has heads",
      args: () => generate("--tp", "5"),
      exitCode: 3,
      code: "TOO_MANY_RANKS",
      names: /5.*4/,
    },
    {
      what: "a truncated weight file",
      args: () => damaged("truncated", (directory) => truncateSync(join(directory, "model.safetensors"), 500_000)),
      exitCode: 3,
      code: "OFFSETS_BEYOND_FILE",
      names: /model\.safetensors/,
    },
    {
      what: "a weight file cut to its first bytes",
      args: () => damaged("cut", (directory) => truncateSync(join(directory, "model.safetensors"), 6)),
      exitCode: 3,
      code: "FILE_TOO_SHORT",
      names: /model\.safetensors/,
    },
    {
      what: "a header that lies about its length",
      args: () =>
        damaged("long-header", (directory) => {
          const file = join(directory, "model.safetensors");
          const bytes = readFileSync(file);
          bytes.writeBigUInt64LE(50_000_000n, 0);
          writeFileSync(file, bytes);
        }),
      exitCode: 3,
      code: "HEADER_BEYOND_FILE",
      names: /model\.safetensors.*50000000/,
    },
    {
      what: "a header that is not JSON",
      args: () =>
        damaged("no-json", (directory) => {
          const file = join(directory, "model.safetensors");
          const bytes = readFileSync(file);
          bytes[20] = 0;
          writeFileSync(file, bytes);
        }),
      exitCode: 3,
      code: "HEADER_NOT_JSON",
      names: /model\.safetensors/,
    },
    {
      what: "a missing tensor",
      args: () =>
        damaged("missing", (directory) =>
          setHeader(directory, (header) => {
            const entry = header["model.layers.1.mlp.up_proj.weight"];
            delete header["model.layers.1.mlp.up_proj.weight"];
            // The bytes stay, under a name that the model ignores by rule.
            if (entry !== undefined) header["model.layers.1.self_attn.rotary_emb.inv_freq"] = entry;
            return undefined;
          }),
        ),
      exitCode: 3,
      code: "MISSING_TENSOR",
      names: /model\.layers\.1\.mlp\.up_proj\.weight/,
    },
    {
      what: "a surplus tensor, whose name would play tricks on the terminal",
      args: () =>
        damaged("surplus", (directory) =>
          setHeader(directory, (header, data) => {
            header["\u001b[31mextra\nweight"] = {
              dtype: "U8",
              shape: [4],
              data_offsets: [data.length, data.length + 4],
            };
            return Buffer.concat([data, Buffer.alloc(4)]);
          }),
        ),
      exitCode: 3,
      code: "UNEXPECTED_TENSOR",
      names: /model\.safetensors.*\\u001b\[31mextra weight/,
    },
    {
      what: "a tensor of another shape",
      args: () =>
        damaged("shape", (directory) =>
          setHeader(directory, (header) => {
            const entry = header["model.norm.weight"];
            if (entry !== undefined) header["model.norm.weight"] = { ...entry, shape: [2, 64] };
            return undefined;
          }),
        ),
      exitCode: 3,
      code: "SHAPE_MISMATCH",
      names: /model\.norm\.weight.*128.*2, 64/,
    },
    {
      what: "a broken tokenizer",
      args: () =>
        damaged("broken-tokenizer", (directory) => {
          addTokenizer(directory);
          writeFileSync(join(directory, "tokenizer.json"), "{}");
        }),
      exitCode: 3,
      code: "INVALID_TOKENIZER",
      names: /model/,
    },
  ];

  const plugins: readonly Wrong[] = [
    {
      what: "an unknown plugin",
      args: () => generate("--plugin", "@shardloom/absent"),
      exitCode: 4,
      code: "PLUGIN_NOT_FOUND",
      names: /@shardloom\/absent/,
    },
    {
      what: "an unknown plugin in the environment",
      args: () => generate(),
      env: { SHARDLOOM_PLUGINS: "./absent.js" },
      exitCode: 4,
      code: "PLUGIN_NOT_FOUND",
      names: /\.\/absent\.js/,
    },
    {
      what: "a module that is no plugin",
      args: () => plugin("no-plugin.mjs", "export const greeting = 'hello';"),
      exitCode: 4,
      code: "INVALID_PLUGIN",
      names: /no-plugin\.mjs/,
    },
    {
      what: "a plugin that throws, with many words",
      args: () => plugin("throws.mjs", "throw new Error('first line\\nsecond line');"),
      exitCode: 4,
      code: "PLUGIN_FAILED",
      names: /throws\.mjs.*first line second line/,
    },
    {
      what: "a plugin for another version of shardloom",
      args: () => plugin("old.mjs", "export const plugin = { name: 'old', apiVersion: 0, register() {} };"),
      exitCode: 4,
      code: "PLUGIN_API_VERSION",
      names: /old.*1.*0/,
    },
  ];

  for (const { what, args, env, exitCode, code, names } of [...commandLines, ...prompts, ...models, ...plugins]) {
    it(`${what}: ${code}, exit code ${exitCode}`, async () => {
      const result = await cli(args(), env === undefined ? {} : { env });
      const [line = "", ...others] = result.stderr.split("\n");
      assert.deepEqual(others, [""], result.stderr);
      const prefix = `shardloom: error[${code}]: `;
      assert.ok(line.startsWith(prefix), line);
      assert.match(line.slice(prefix.length), names);
      assert.equal(result.code, exitCode);
      assert.equal(result.stdout, "");
    });
  }

  it("--verbose adds where the error comes from", async () => {
    const args = ["generate", "--model", join(folder.path, "absent"), ...PROMPT, "--verbose"];
    const { code, stderr } = await cli(args);
    assert.equal(code, 3);
    assert.match(stderr, /^shardloom: error\[MODEL_NOT_FOUND\]: .*\n.*\n {4}at resolveModel /s);
  });

  it("no command: the help on stderr, exit code 2", async () => {
    const { code, stdout, stderr } = await cli([]);
    assert.equal(code, 2);
    assert.equal(stdout, "");
    assert.match(stderr, /^Usage: shardloom/);
  });
});
