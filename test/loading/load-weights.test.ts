/** From a checkpoint's tensors to a model's parameters: by exact name, each once, whatever file it is in, or not at all. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { plugin as bitsandbytes } from "@shardloom/bitsandbytes";
import { pino } from "pino";
import { ShardloomError } from "../../src/core/errors.js";
import { bytesOf } from "../../src/core/tensor.js";
import type { RankModel } from "../../src/rank/rank-model.js";
import { temporaryFolder } from "../checkpoint/files.js";
import { fixture } from "../fixture.js";
import {
  configOf,
  type LoadRanksOptions,
  loadRanks,
  type StoredTensor,
  tensorsOf,
  writeModel,
} from "./rewritten-model.js";

const LLAMA = fixture("tiny/llama/bf16");
const UNEVEN = fixture("tiny/llama-uneven/bf16");
const PHI3 = fixture("tiny/phi3/bf16");

function bf16(shape: readonly number[], bits: number): StoredTensor {
  const count = shape.reduce((product, extent) => product * extent, 1);
  return { dtype: "bf16", shape, bytes: new Uint8Array(new Uint16Array(count).fill(bits).buffer) };
}

/** Bytes of all parameters, by rank and name. */
function contents(ranks: readonly RankModel[]): Map<string, Uint8Array> {
  return new Map(
    ranks.flatMap(({ rank, context }) =>
      context.parameters.map(({ name, tensor }) => [`${rank}: ${name}`, Uint8Array.from(bytesOf(tensor))] as const),
    ),
  );
}

function failsWith(code: string, ...patterns: readonly RegExp[]): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof ShardloomError, String(error));
    assert.equal(error.code, code, error.message);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  };
}

describe("loading weights", () => {
  const folder = temporaryFolder();

  /** A copy of a model with tensors added, replaced, or (null) taken away. */
  function changed(
    source: string,
    changes: Readonly<Record<string, StoredTensor | null>>,
    config: Readonly<Record<string, unknown>> = {},
  ): string {
    const tensors = tensorsOf(source);
    for (const [name, tensor] of Object.entries(changes)) {
      if (tensor === null) tensors.delete(name);
      else tensors.set(name, tensor);
    }
    return writeModel(join(folder.path, "model"), { ...configOf(source), ...config }, tensors);
  }

  for (const source of ["tiny/llama/bf16", "tiny/llama/nf4-dq", "tiny/llama/int8", "tiny/phi3/nf4"]) {
    it(`${source}: parts of a layer, and a weight and its sidecars, may lie in different files, in any order`, async () => {
      const path = fixture(source);
      const tensors = tensorsOf(path);
      const names = [...tensors.keys()];
      // Neighbours in the original part ways, and the order within a file is turned round.
      const scattered = new Map([...tensors].reverse());
      const fileOf = (name: string): string => `model-${(names.indexOf(name) % 5) + 1}.safetensors`;
      const copy = writeModel(join(folder.path, "scattered"), configOf(path), scattered, fileOf);
      const plugins = [bitsandbytes];
      assert.deepEqual(
        contents(await loadRanks(copy, 2, { plugins })),
        contents(await loadRanks(path, 2, { plugins })),
      );
    });
  }

  it("names a missing part with its shard id, its rows and the rank", async () => {
    const name = "model.layers.1.self_attn.v_proj.weight";
    // Rank 0 has 4 of 6 query heads and 2 of 3 KV heads, of 16 rows each.
    await assert.rejects(
      loadRanks(changed(UNEVEN, { [name]: null }), 2),
      failsWith(
        "MISSING_TENSOR",
        /qkv_proj\.weight on rank 0: rows 96\.\.127.*layers\.1\.self_attn\.v_proj\.weight \(shard v\)/,
      ),
    );
    await assert.rejects(loadRanks(changed(UNEVEN, { [name]: null }), 2), (error) => {
      assert.ok(error instanceof ShardloomError);
      const { tensor, shardId, rank, received } = error.details;
      assert.deepEqual({ tensor, shardId, rank, received }, { tensor: name, shardId: "v", rank: 0, received: "none" });
      return true;
    });
  });

  it("passes over what old checkpoints hold and no model needs, and reports it", async () => {
    const name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    const [rank] = await loadRanks(changed(LLAMA, { [name]: bf16([16], 0) }), 1);
    assert.deepEqual(rank?.ignored, [name]);
  });

  it("refuses a tensor that no layer takes, by its exact name", async () => {
    for (const name of [
      "foo.bar",
      "model.layers.2.mlp.up_proj.weight",
      "model.layers.0.mlp.experts.3.gate_proj.weight",
      "model.layers.0.self_attn.q_proj.weight.absmax",
      "xmodel.norm.weight",
    ]) {
      await assert.rejects(
        loadRanks(changed(LLAMA, { [name]: bf16([2, 2], 0) }), 1),
        failsWith("UNEXPECTED_TENSOR", new RegExp(`model\\.safetensors: .*${name.replaceAll(".", "\\.")} `)),
      );
    }
  });

  it("fused names are not taken for parts: qkv_proj never meets v_proj, nor gate_up_proj up_proj", async () => {
    const [rank] = await loadRanks(PHI3, 1);
    const { targets } = rank?.context ?? assert.fail();
    const shardsOf = (name: string) => targets.get(`model.layers.0.${name}.weight`)?.map(({ shardId }) => shardId);
    assert.deepEqual(shardsOf("self_attn.qkv_proj"), [null]);
    assert.deepEqual(shardsOf("self_attn.v_proj"), ["v"]);
    assert.deepEqual(shardsOf("mlp.gate_up_proj"), [null]);
    assert.deepEqual(shardsOf("mlp.up_proj"), [1]);
    assert.equal(shardsOf("mlp.experts.3.gate_proj"), undefined);
  });

  it("a part beside the fused tensor that holds it too is loaded twice: an error that names both", async () => {
    const name = "model.layers.0.self_attn.v_proj.weight";
    await assert.rejects(
      loadRanks(changed(PHI3, { [name]: bf16([48, 96], 0) }), 2),
      failsWith("DUPLICATE_WEIGHT", /qkv_proj.*v_proj|v_proj.*qkv_proj/),
    );
  });

  it("a quantized weight without a word in config.json is refused: no integer becomes a float", async () => {
    const packed: StoredTensor = { dtype: "u8", shape: [128, 128], bytes: new Uint8Array(128 * 128) };
    await assert.rejects(
      loadRanks(changed(LLAMA, { "model.layers.0.self_attn.q_proj.weight": packed }), 1),
      failsWith("DTYPE_MISMATCH", /q_proj\.weight.*bf16.*u8/),
    );
  });

  it("a value that --dtype cannot hold is reported, with its tensor, and not a silent infinity", async () => {
    const name = "model.layers.1.mlp.down_proj.weight";
    // bf16 0x47c3 is 99840, about 1e5.
    const path = changed(LLAMA, { [name]: bf16([128, 256], 0x47c3) });
    await assert.rejects(loadRanks(path, 2, { dtype: "f16" }), failsWith("FLOAT_OVERFLOW", /down_proj.*f16.*99840/));
    assert.equal((await loadRanks(path, 2)).length, 2);
  });
});

describe("tied weights", () => {
  const folder = temporaryFolder();

  /** Warnings that loading on two ranks writes to the log. */
  async function warningsOf(
    head: StoredTensor | null,
    config: Readonly<Record<string, unknown>> = {},
    quantization: Pick<LoadRanksOptions, "plugins" | "choice"> = {},
  ): Promise<string[]> {
    const tensors = tensorsOf(LLAMA);
    if (head !== null) tensors.set("lm_head.weight", head);
    const path = writeModel(join(folder.path, "model"), { ...configOf(LLAMA), ...config }, tensors);
    const lines: string[] = [];
    const logger = pino({ level: "warn" }, { write: (line: string) => lines.push(line) });
    const ranks = await loadRanks(path, 2, { logger, ...quantization });
    assert.deepEqual(
      ranks.map(({ ignored }) => ignored),
      head === null || config["tie_word_embeddings"] === false ? [[], []] : [["lm_head.weight"], ["lm_head.weight"]],
    );
    return lines;
  }

  const embedding = (): StoredTensor => tensorsOf(LLAMA).get("model.embed_tokens.weight") ?? assert.fail();

  it("load without a head, and with one that repeats the embedding, and nothing is said", async () => {
    assert.deepEqual(await warningsOf(null), []);
    assert.deepEqual(await warningsOf(embedding()), []);
  });

  it("compare a head with the embedding that is on disk, also where what is loaded are codes of it", async () => {
    const choice = { method: "bitsandbytes", options: { headType: "int8" } };
    const quantization = { plugins: [bitsandbytes], choice };
    assert.deepEqual(await warningsOf(embedding(), {}, quantization), []);
    assert.equal((await warningsOf(bf16([500, 128], 0), {}, quantization)).length, 1);
  });

  it("with a head of its own in the checkpoint warn once, naming both, however many ranks there are", async () => {
    const { dtype, shape, bytes } = embedding();
    const other = Uint8Array.from(bytes);
    other.set([(bytes.at(-1) ?? 0) ^ 1], bytes.length - 1);
    for (const head of [{ dtype, shape, bytes: other }, bf16([500, 128], 0), bf16([500, 64], 0)]) {
      const lines = await warningsOf(head);
      assert.equal(lines.length, 1);
      const { tensor, used, msg } = JSON.parse(lines[0] ?? "");
      assert.deepEqual([tensor, used], ["lm_head.weight", "model.embed_tokens.weight"]);
      assert.match(msg, /lm_head\.weight is not model\.embed_tokens\.weight.*ignored/);
    }
  });

  it("untied: a head is loaded without a word, and one that is missing is an error", async () => {
    const untied = { tie_word_embeddings: false };
    assert.deepEqual(await warningsOf(bf16([500, 128], 0x3f80), untied), []);
    await assert.rejects(warningsOf(null, untied), failsWith("MISSING_TENSOR", /lm_head\.weight/));
  });
});
