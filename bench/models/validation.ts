/**
 * Is what is timed right? The log-probabilities of the tokens that follow a short prompt, from the reference kernels,
 * beside those of a contestant. The reference is slow, so its answer is kept beside the model's file.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Contestant, NextToken } from "../contestants/contestant.js";
import { promptOf } from "../contestants/prompt.js";
import { startShardloom } from "../contestants/shardloom.js";
import { type BenchModel, cacheFolder } from "./model-store.js";
import { SMOLLM2_135M } from "./shapes.js";

/** What the sample model is asked: "The capital of France is". */
const SENTENCE = [504, 3575, 282, 4649, 314];
const MADE_UP_TOKENS = 3;
const SEED = 17;
const CAPACITY = { contextTokens: 64, sequences: 1 };

/**
 * Largest mean difference of log-probabilities. Activations of 8 bits, which llama.cpp always uses beside quantized
 * weights, cost some hundredths; a wrong kernel costs whole numbers.
 */
const TOLERANCE = 0.2;
/** Of the reference's tokens, so many must be among the contestant's. */
const LEAST_COMMON = 0.5;

function promptFor({ shape }: BenchModel): number[] {
  return shape === SMOLLM2_135M ? SENTENCE : promptOf(MADE_UP_TOKENS, shape.vocabulary, SEED);
}

/** The likeliest tokens by the reference kernels. Rejects when they cannot be had. */
export async function referenceAnswer(model: BenchModel, report: (line: string) => void): Promise<NextToken> {
  const folder = join(await cacheFolder(), "bench");
  const { size, mtimeMs } = statSync(model.path);
  const key = createHash("sha256").update(`${model.path} ${size} ${mtimeMs}`).digest("hex").slice(0, 16);
  const file = join(folder, `${model.shape.name}.${model.weights}.${key}.reference.json`);
  if (!existsSync(file)) {
    report(`asking the reference kernels about ${model.shape.name} ${model.weights}; this takes a while, once`);
    const answer = await askReference(model);
    mkdirSync(folder, { recursive: true });
    writeFileSync(`${file}.partial`, JSON.stringify(answer));
    renameSync(`${file}.partial`, file);
  }
  return JSON.parse(readFileSync(file, "utf8"));
}

async function askReference(model: BenchModel): Promise<NextToken> {
  const environment = { SHARDLOOM_KERNELS: "reference" };
  const reference = await startShardloom(model, { name: "reference", options: {}, environment }, CAPACITY);
  try {
    const answer = await reference.nextToken(promptFor(model));
    if (answer === null) throw new Error("expected log-probabilities but received none");
    return answer;
  } finally {
    await reference.close();
  }
}

/** What was checked, in words. Throws an Error that says how far a contestant is off. */
export async function validate(contestant: Contestant, model: BenchModel, reference: NextToken): Promise<string> {
  const answer = await contestant.nextToken(promptFor(model));
  if (answer === null) return `${contestant.name}: tells no log-probabilities, not checked`;
  const { common, mean } = compareNextTokens(answer, reference);
  if (common < LEAST_COMMON || !(mean <= TOLERANCE)) {
    const subject = `${contestant.name}, ${model.shape.name} ${model.weights}`;
    throw new Error(
      `${subject}: expected log-probabilities within ${TOLERANCE} of the reference kernels', on average, ` +
        `but received a difference of ${mean}, with ${Math.round(100 * common)}% of the likeliest tokens in common`,
    );
  }
  return `${contestant.name}: log-probabilities within ${mean.toPrecision(2)} of the reference kernels', on average`;
}

/** Share of the reference's tokens that `answer` has as well, and the mean difference of their log-probabilities. */
export function compareNextTokens(answer: NextToken, reference: NextToken): { common: number; mean: number } {
  const logprobs = new Map(answer.map(({ id, logprob }) => [id, logprob]));
  const differences = reference.flatMap(({ id, logprob }) => {
    const other = logprobs.get(id);
    return other === undefined ? [] : [Math.abs(other - logprob)];
  });
  const mean = differences.reduce((sum, difference) => sum + difference, 0) / differences.length;
  return { common: differences.length / reference.length, mean };
}
