/** An answer, put together from its deltas, and what is told about it. */
import type { Engine, FinishReason, GenerationDelta, GenerationTimings, TokenLogprob } from "../index.js";
import { formatBytes, formatMs, formatNumber } from "./quantities.js";

export class Answer {
  promptTokenIds: readonly number[] = [];
  readonly tokenIds: number[] = [];
  readonly logprobs: TokenLogprob[][] = [];
  text = "";
  finishReason: FinishReason | null = null;
  timings: GenerationTimings | null = null;
  seed: number | null = null;

  add(delta: GenerationDelta): void {
    this.promptTokenIds = delta.promptTokenIds ?? this.promptTokenIds;
    this.seed = delta.seed ?? this.seed;
    for (const id of delta.tokenIds) this.tokenIds.push(id);
    this.text += delta.text;
    this.finishReason = delta.finishReason;
    this.timings = delta.timings ?? this.timings;
    for (const { id, logprob, top } of delta.logprobs ?? []) {
      const likeliest = top.map((candidate) => ({ id: candidate.id, logprob: candidate.logprob }));
      // A token that was drawn need not be among the likeliest.
      this.logprobs.push(top.some((candidate) => candidate.id === id) ? likeliest : [...likeliest, { id, logprob }]);
    }
  }
}

/** What `generate --json` prints. */
export interface GenerationReport {
  readonly model: string;
  readonly tp: number;
  readonly prompt_token_ids: readonly number[];
  readonly outputs: readonly {
    readonly token_ids: readonly number[];
    readonly text: string;
    readonly finish_reason: FinishReason | null;
    /** Of each token: the likeliest ones there, best first, and the token itself if it is not among them. */
    readonly logprobs?: readonly (readonly TokenLogprob[])[];
  }[];
  readonly timings: { readonly load_ms: number; readonly ttft_ms: number | null; readonly tpot_ms: number | null };
  readonly ranks: readonly { readonly rank: number; readonly load_ms: number; readonly bytes_read: number }[];
}

export interface ReportOptions {
  /** As the user named it. */
  readonly model: string;
  readonly loadMs: number;
  readonly withLogprobs: boolean;
}

export function reportOf(answer: Answer, engine: Engine, options: ReportOptions): GenerationReport {
  const { tokenIds, text, finishReason, logprobs, timings } = answer;
  return {
    model: options.model,
    tp: engine.worldSize,
    prompt_token_ids: answer.promptTokenIds,
    outputs: [
      { token_ids: tokenIds, text, finish_reason: finishReason, ...(options.withLogprobs ? { logprobs } : {}) },
    ],
    timings: {
      load_ms: rounded(options.loadMs),
      ttft_ms: rounded(timings?.ttftMs ?? null),
      tpot_ms: rounded(timings?.tpotMs ?? null),
    },
    ranks: engine.reports.map(({ rank, loadMs, bytesRead }) => ({
      rank,
      load_ms: rounded(loadMs),
      bytes_read: bytesRead,
    })),
  };
}

/** A line a rank, and one on how fast the answer came. */
export function summaryOf(answer: Answer, engine: Engine): readonly string[] {
  const ranks = engine.reports.map(
    ({ rank, loadMs, bytesRead }) => `rank ${rank}: read ${formatBytes(bytesRead)}, loaded in ${formatMs(loadMs)}`,
  );
  const { ttftMs = null, tpotMs = null } = answer.timings ?? {};
  const parts = [
    `${answer.tokenIds.length} tokens (${answer.finishReason ?? "unfinished"})`,
    `TTFT ${ttftMs === null ? "-" : formatMs(ttftMs)}`,
    `TPOT ${tpotMs === null ? "-" : formatMs(tpotMs)}`,
    `${tpotMs === null || tpotMs === 0 ? "-" : formatNumber(1000 / tpotMs)} tokens/s`,
    ...(answer.seed === null ? [] : [`seed ${answer.seed}`]),
  ];
  return [...ranks, parts.join(", ")];
}

/** Milliseconds to the microsecond. */
function rounded<Value extends number | null>(ms: Value): Value | number {
  return ms === null ? ms : Math.round(ms * 1000) / 1000;
}
