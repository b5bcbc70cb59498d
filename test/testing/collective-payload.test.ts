import assert from "node:assert/strict";
import { type CollectivePayload, launch } from "../../src/index.js";
import { simulate } from "../../src/testing/index.js";
import { fixture } from "../fixture.js";

const model = fixture("tiny/llama/bf16");
const tokenIds = [3, 17, 42, 5, 99, 23, 8, 64];

async function nllOnThreads(collectivePayload: CollectivePayload): Promise<readonly number[]> {
  const engine = await launch({ model, tensorParallelSize: 2, collectivePayload, activations: "f32" });
  try {
    return [...(await engine.score(tokenIds)).nll];
  } finally {
    await engine.close();
  }
}

async function nllInTurns(collectivePayload: CollectivePayload): Promise<readonly number[]> {
  const simulation = await simulate({ model, worldSize: 2, kernels: "native", collectivePayload });
  try {
    return [...(await simulation.engine.score(tokenIds)).nll];
  } finally {
    await simulation.close();
  }
}

describe("what ranks send each other to sum", () => {
  it("is rounded to bf16 on threads as in turns, bit for bit, and only where asked for", async function () {
    if (process.env["SHARDLOOM_KERNELS"] === "reference") this.skip();
    const [f32, bf16] = [await nllOnThreads("f32"), await nllOnThreads("bf16")];
    assert.deepEqual(await nllInTurns("f32"), f32);
    assert.deepEqual(await nllInTurns("bf16"), bf16);
    assert.notDeepEqual(bf16, f32);
    for (const [i, nll] of bf16.entries()) assert.ok(Math.abs(nll - (f32[i] ?? 0)) < 0.05, `token ${i + 1}`);
  });

  it("is half as many bytes in the trace", async () => {
    const bytesOf = async (collectivePayload: CollectivePayload) => {
      const simulation = await simulate({ model, worldSize: 2, collectivePayload });
      simulation.prefill([1, 2, 3]);
      await simulation.close();
      return simulation.trace.steps[0]?.collectives
        .filter(({ kind }) => kind === "allReduce")
        .map(({ bytes }) => bytes);
    };
    const f32 = await bytesOf("f32");
    assert.deepEqual(
      await bytesOf("bf16"),
      f32?.map((bytes) => bytes.map((each) => each / 2)),
    );
  });

  it("is f32 or bf16, whoever is asked", async () => {
    const wrong: unknown = "f16";
    const options = { model, collectivePayload: wrong as CollectivePayload };
    const refused = { code: "INVALID_OPTION", message: /collectivePayload to be f32 or bf16 but received "f16"/ };
    await assert.rejects(launch(options), refused);
    await assert.rejects(simulate({ ...options, worldSize: 2 }), refused);
  });
});
