import assert from "node:assert/strict";
import { expectOwnedOnce, expectRanksAgree, expectReassembles, expectSameLogits, simulate } from "shardloom/testing";

const config = {
  architectures: ["LlamaForCausalLM"],
  hidden_act: "silu",
  hidden_size: 128,
  intermediate_size: 352,
  num_hidden_layers: 2,
  num_attention_heads: 16,
  num_key_value_heads: 4,
  vocab_size: 1000,
  max_position_embeddings: 256,
  torch_dtype: "bfloat16",
};

describe("my model on 6 ranks, which divide nothing of it", () => {
  it("is the same model as on one rank", async () => {
    const simulation = await simulate({ config, worldSize: 6, seed: 7 });

    const { shared } = expectOwnedOnce(simulation);
    assert.deepEqual(
      shared.filter((name) => name.startsWith("model.layers.0.")),
      ["model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"],
    );
    await expectReassembles(simulation);
    expectSameLogits(simulation, await simulation.unsharded(), 1e-4);
    expectRanksAgree(simulation);

    await simulation.close();
  });

  it("gives rank 4 its heads, and the keys and values that they read", async () => {
    const simulation = await simulate({ config, worldSize: 6, seed: 7 });
    const rank = simulation.ranks[4];

    assert.deepEqual(rank?.ownership.queryHeads, { start: 12, end: 14 });
    assert.deepEqual(rank?.ownership.kvHeads, { start: 3, end: 4 });
    const weight = rank?.parameter("model.layers.0.self_attn.qkv_proj.weight");
    // Two query heads, one key head and one value head of 8 rows each.
    assert.deepEqual(weight?.shape, [2 * 8 + 8 + 8, 128]);
    const [query] = weight?.slices.filter(({ shardId }) => shardId === "q") ?? [];
    assert.deepEqual(query?.ranges[0], { start: 12 * 8, end: 14 * 8 });

    await simulation.close();
  });

  it("generates the same tokens in whatever order ranks take turns", async () => {
    const answers = new Set<string>();
    for (const order of ["byRank", "reversed", "shuffled"] as const) {
      const simulation = await simulate({ config, worldSize: 6, seed: 7, order });
      answers.add(simulation.generate([1, 2, 3], 8).tokenIds.join(" "));
      await simulation.close();
    }
    assert.equal(answers.size, 1);
  });
});
