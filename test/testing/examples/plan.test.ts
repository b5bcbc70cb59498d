import assert from "node:assert/strict";
import { collectiveTimeline, costModel, expectOwnedOnce, simulate } from "shardloom/testing";

const config = {
  architectures: ["LlamaForCausalLM"],
  hidden_act: "silu",
  hidden_size: 8192,
  intermediate_size: 28672,
  num_hidden_layers: 80,
  num_attention_heads: 64,
  num_key_value_heads: 8,
  vocab_size: 128256,
  max_position_embeddings: 8192,
  tie_word_embeddings: false,
  torch_dtype: "bfloat16",
};
/** Nothing is read, computed or stored: 70 billion parameters or 700, any number of ranks, any laptop. */
const options = { config, shapeOnly: true, maxModelLength: 8192, maxSequences: 1, kvCacheDtype: "bf16" } as const;

describe("a model of 70 billion parameters that is not here", () => {
  it("takes 17.6 GB of weights and 0.3 GB of KV cache on each of 8 ranks", async () => {
    const simulation = await simulate({ ...options, worldSize: 8 });
    expectOwnedOnce(simulation);
    const { ranks, replicatedBytes } = simulation.ownership;
    for (const { parameterBytes, kvCacheBytes } of ranks) {
      assert.equal((parameterBytes / 1e9).toFixed(1), "17.6");
      assert.equal((kvCacheBytes / 1e9).toFixed(1), "0.3");
    }
    // What all ranks hold alike: 161 norms of 8192 f32.
    assert.deepEqual(replicatedBytes, new Array(8).fill(161 * 8192 * 4));
  });

  it("does not fit where each rank has 16 GB", async () => {
    const loading = simulate({ ...options, worldSize: 8, memoryLimitBytes: 16e9 });
    await assert.rejects(loading, { code: "OUT_OF_MEMORY", message: /^rank 0: / });
  });

  it("decodes 8 times as fast on 8 ranks, but not 64 times as fast on 64", async () => {
    // A meeting of all ranks takes 20 us; a rank moves 8 GB/s to sum, and reads 40 GB/s of weights.
    const machine = costModel({ latencyUs: 20, gbps: 8, compute: { weightGbps: 40 } });
    const stepMs = new Map<number, number>();
    for (const worldSize of [1, 8, 64]) {
      const simulation = await simulate({ ...options, worldSize });
      simulation.step();
      stepMs.set(worldSize, Math.round(machine.predict(simulation.trace).stepMs));
    }
    assert.deepEqual(
      [...stepMs],
      [
        [1, 3528],
        [8, 449],
        [64, 70],
      ],
    );
  });

  it("meets 162 times a token, as a timeline for Perfetto shows", async () => {
    const simulation = await simulate({ ...options, worldSize: 8 });
    simulation.step();
    const machine = costModel({ latencyUs: 20, gbps: 8, compute: { weightGbps: 40 } });
    const { traceEvents } = JSON.parse(JSON.stringify(collectiveTimeline(simulation.trace, machine)));
    const ofRank3 = traceEvents.filter(
      (event: { tid: number; cat?: string }) => event.tid === 3 && event.cat === "collective",
    );
    assert.equal(ofRank3.length, 162);
    assert.equal(ofRank3[1].name, "allReduce model.layers.0.self_attn.o_proj");
  });
});
