import assert from "node:assert/strict";
import { type FaultSchedule, launchWithFaults, simulate } from "shardloom/testing";

const config = {
  architectures: ["LlamaForCausalLM"],
  hidden_act: "silu",
  hidden_size: 64,
  intermediate_size: 192,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  vocab_size: 300,
  torch_dtype: "bfloat16",
};
/** A step of this model has six collectives: rank 1 hangs in the second. */
const faults: FaultSchedule = [{ rank: 1, collective: 8, kind: "hang" }];

describe("when rank 1 hangs in the middle of an answer", () => {
  it("the others miss it: known at once in a simulation, whatever the deadline", async () => {
    const simulation = await simulate({ config, worldSize: 3, faults });
    simulation.prefill([1, 2, 3]);
    assert.throws(() => simulation.decode(4), { code: "COLLECTIVE_TIMEOUT", message: /rank 1 did not arrive/ });
    await simulation.close();
  });

  it("my requests end in an error that my code can handle, and no thread is left", async () => {
    const timeouts = { collectiveTimeoutMs: 500 };
    const engine = await launchWithFaults({ config, worldSize: 3, faults, timeouts });
    const tokenIds: number[] = [];
    const answer = async () => {
      const request = { promptTokenIds: [1, 2, 3], sampling: { maxTokens: 8 } };
      for await (const delta of engine.generate(request)) tokenIds.push(...delta.tokenIds);
    };
    await assert.rejects(answer, { name: "CollectiveError", code: "COLLECTIVE_TIMEOUT" });
    assert.equal(tokenIds.length, 1);
    await engine.close();
  });
});
