/** Prints the likeliest tokens after a prompt, as JSON. Run with SHARDLOOM_KERNELS=reference: `BENCH_MODEL PROMPT`, as JSON. */
import { startShardloom } from "../contestants/shardloom.js";
import type { BenchModel } from "./model-store.js";

const [, , given = "{}", prompt = "[]"] = process.argv;
const model: BenchModel = JSON.parse(given);
const promptTokenIds: number[] = JSON.parse(prompt);
const setup = { name: "reference", options: { kvCacheBytes: 256 * 2 ** 20 } };
const engine = await startShardloom(model, setup, { contextTokens: 64, sequences: 1 });
try {
  console.log(JSON.stringify(await engine.nextToken(promptTokenIds)));
} finally {
  await engine.close();
}
