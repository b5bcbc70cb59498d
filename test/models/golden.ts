/** Goldens of transformers (test/fixtures/README.md), and how to hold an engine to them. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import type { Engine } from "../../src/engine/engine.js";
import type { TokenLogprobs } from "../../src/engine/generation.js";
import type { SamplingOptions } from "../../src/engine/sampling.js";

/** Full logits of one step, as far as the golden keeps them. */
export interface GoldenStep {
  /** `[id, logit]`, largest first. */
  readonly top: readonly (readonly [number, number])[];
  readonly logsumexp: number;
}

export interface GoldenPrompt {
  readonly name?: string;
  readonly text?: string;
  readonly messages?: readonly { readonly role: string; readonly content: string }[];
  readonly promptIds: readonly number[];
  readonly generatedIds: readonly number[];
  readonly generatedText?: string;
  /** Lead of the winner over the second at each generated token. */
  readonly margins: readonly number[];
  readonly steps: readonly GoldenStep[];
}

export interface Golden {
  readonly prompts: readonly GoldenPrompt[];
}

export function readGolden(path: string): Golden {
  return JSON.parse(readFileSync(path, "utf8"));
}

/** What `collect` gathers of one answer. */
export interface Answer {
  readonly tokenIds: number[];
  readonly logprobs: TokenLogprobs[];
  text: string;
}

/** Generates to the end. */
export async function collect(
  engine: Engine,
  promptTokenIds: readonly number[],
  sampling: SamplingOptions,
): Promise<Answer> {
  const answer: Answer = { tokenIds: [], logprobs: [], text: "" };
  for await (const delta of engine.generate({ promptTokenIds, sampling })) {
    answer.tokenIds.push(...delta.tokenIds);
    answer.logprobs.push(...(delta.logprobs ?? []));
    answer.text += delta.text;
  }
  return answer;
}

/**
 * Holds an answer to its golden: the same greedy tokens, and log-probabilities of the twenty likeliest tokens of the
 * first five steps within `tolerance`. Log-probabilities are logits minus their logsumexp, so that a shift common to all
 * logits, which changes no probability, is not seen; everything else is.
 */
export function expectGolden(answer: Answer, golden: GoldenPrompt, tolerance: number, what: string): void {
  assert.deepEqual(answer.tokenIds, golden.generatedIds, `${what}: greedy tokens`);
  expectLogprobs(answer, golden.steps, tolerance, what);
}

/** How far a model may be from its golden when its weights are not quite those the golden was computed with. */
export interface GoldenBounds {
  /** Difference of a log-probability. */
  readonly logprob: number;
  /** Difference of the lead of one logit over another: winners that lead by less may lose. */
  readonly margin: number;
}

/**
 * Holds an answer to the golden of nearly the same weights: the same greedy tokens, up to the first where the winner's lead
 * is within the bound and another one wins, after which the two write different texts; and log-probabilities within
 * theirs, as long as the texts are the same.
 */
export function expectNearGolden(answer: Answer, golden: GoldenPrompt, bounds: GoldenBounds, what: string): void {
  const parting = golden.generatedIds.findIndex((id, step) => id !== answer.tokenIds[step]);
  const same = parting < 0 ? golden.generatedIds.length : parting;
  if (parting >= 0) {
    const margin = golden.margins[parting] ?? Number.POSITIVE_INFINITY;
    assert.ok(margin <= bounds.margin, `${what}: step ${parting}: another token where the winner leads by ${margin}`);
  }
  expectLogprobs(answer, golden.steps.slice(0, same + 1), bounds.logprob, what);
}

function expectLogprobs(answer: Answer, steps: readonly GoldenStep[], tolerance: number, what: string): void {
  steps.forEach(({ top, logsumexp }, step) => {
    const received = new Map(answer.logprobs[step]?.top.map(({ id, logprob }) => [id, logprob]));
    for (const [id, logit] of top) {
      const logprob = received.get(id);
      // The last of twenty may change places with the twenty-first where they are equal within the tolerance.
      if (logprob === undefined && logit - (top.at(-1)?.[1] ?? 0) < tolerance) continue;
      assert.ok(logprob !== undefined, `${what}: step ${step}: token ${id} is not among the likeliest`);
      const difference = Math.abs(logprob - (logit - logsumexp));
      assert.ok(difference <= tolerance, `${what}: step ${step}: token ${id} is off by ${difference}`);
    }
  });
}
