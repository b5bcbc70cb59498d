/** The process of shardloom that loads a model, answers with one token, says so, and ends: `BENCH_MODEL LAUNCH_OPTIONS`, as JSON. */
import { type LaunchOptions, launch } from "shardloom";
import { promptOf } from "../contestants/prompt.js";
import type { BenchModel } from "../models/model-store.js";
import type { FirstToken } from "./contestants.js";
import { FIRST_TOKEN_CAPACITY, PROMPT_TOKENS } from "./first-token-work.js";

const [, , givenModel = "{}", givenOptions = "{}"] = process.argv;
const model: BenchModel = JSON.parse(givenModel);
const options: Omit<LaunchOptions, "model"> = JSON.parse(givenOptions);

const engine = await launch({
  plugins: ["@shardloom/gguf", "@shardloom/bitsandbytes"],
  maxModelLength: FIRST_TOKEN_CAPACITY.contextTokens,
  maxSequences: FIRST_TOKEN_CAPACITY.sequences,
  ...model.launch,
  ...options,
  model: model.path,
});
const promptTokenIds = promptOf(PROMPT_TOKENS, engine.config.vocabularySize, 0);
for await (const _ of engine.generate({ promptTokenIds, sampling: { maxTokens: 1, temperature: 0 } }));
const answer: FirstToken = {
  bytesRead: engine.reports.reduce((sum, report) => sum + report.bytesRead, 0),
  readMs: Math.max(...engine.reports.map(({ loadMs }) => loadMs)),
};
process.send?.(answer);
await engine.close();
process.disconnect();
