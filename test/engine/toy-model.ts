/**
 * A model small enough to be computed by hand: its state is a hash of all tokens before, its logits are a hash of the
 * state. `answerOf` and `logprobsOf` compute it from a plain list of tokens; the fake executor from a step's arrays.
 */

/** The state before the first token. */
export const INITIAL_STATE = 0x5eed;

/** How a token is chosen, as the step holds it. */
export interface ToySampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: number;
}

export const GREEDY: ToySampling = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0 };

export function mix(a: number, b: number): number {
  let h = Math.imul(a ^ Math.imul(b + 1, 0x9e3779b1), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 15), 0xc2b2ae35);
  return h ^ (h >>> 13);
}

/** The state after one more token. */
export function nextState(state: number, tokenId: number, position: number): number {
  return mix(mix(state, tokenId), position);
}

/** Log-probabilities of all tokens after a state. */
export function distribution(state: number, vocabularySize: number): number[] {
  const logits = Array.from({ length: vocabularySize }, (_, id) => ((mix(state, id) >>> 0) % 4096) / 512);
  const max = Math.max(...logits);
  const logSum = max + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
  return logits.map((logit) => logit - logSum);
}

/** The `count` likeliest tokens, best first. */
export function likeliest(logprobs: readonly number[], count: number): { id: number; logprob: number }[] {
  return logprobs
    .map((logprob, id) => ({ id, logprob }))
    .sort((a, b) => b.logprob - a.logprob || a.id - b.id)
    .slice(0, count);
}

/** The likeliest token, or one that depends on every sampling number and on its place in the answer. */
export function choose(state: number, vocabularySize: number, sampling: ToySampling, index: number): number {
  if (sampling.temperature === 0) return likeliest(distribution(state, vocabularySize), 1)[0]?.id ?? 0;
  const numbers = [sampling.topK, sampling.seed, index].concat(
    [sampling.temperature, sampling.topP, sampling.minP].map((value) => Math.round(value * 1000)),
  );
  return (numbers.reduce(mix, state) >>> 0) % vocabularySize;
}

function stateAfter(tokenIds: readonly number[]): number {
  return tokenIds.reduce(nextState, INITIAL_STATE);
}

/** The tokens the model answers, computed from the whole history each time. */
export function answerOf(
  prompt: readonly number[],
  count: number,
  vocabularySize: number,
  sampling: ToySampling = GREEDY,
): number[] {
  const tokens = [...prompt];
  for (let i = 0; i < count; i++) tokens.push(choose(stateAfter(tokens), vocabularySize, sampling, i));
  return tokens.slice(prompt.length);
}

/** The distribution of the token after `tokenIds`. */
export function distributionAfter(tokenIds: readonly number[], vocabularySize: number): number[] {
  return distribution(stateAfter(tokenIds), vocabularySize);
}
