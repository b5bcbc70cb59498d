/** Prints the likeliest tokens after a prompt, as JSON. Run with SHARDLOOM_KERNELS=reference: `MODEL PROMPT`. */
import { startShardloom } from "../contestants/shardloom.js";
import { SMOLLM2_135M } from "./shapes.js";

const [, , path = "", prompt = "[]"] = process.argv;
const promptTokenIds: number[] = JSON.parse(prompt);
const model = { shape: SMOLLM2_135M, weights: "", path, weightBytes: 0 };
const setup = { name: "reference", options: { kvCacheBytes: 256 * 2 ** 20 } };
const engine = await startShardloom(model, setup, { contextTokens: 64, sequences: 1 });
try {
  console.log(JSON.stringify(await engine.nextToken(promptTokenIds)));
} finally {
  await engine.close();
}
