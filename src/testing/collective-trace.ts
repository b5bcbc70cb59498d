/** The trace of a group: every collective of every step, by rank. Plain data, but for the recorder that makes it. */
import type { CollectiveRequest } from "../collectives/collective.js";
import type { CollectivePayload } from "../collectives/payload.js";
import { payloadBytes } from "../collectives/payload-bytes.js";

/** One collective, as all ranks took part in it. Arrays have one entry a rank. */
export interface CollectiveRecord {
  /** Within the step, from 1: the number that errors of collectives name. */
  readonly sequence: number;
  /** Module that asked for it: `model.layers.0.mlp.down_proj`, `sampler.logits`; empty where the request names none. */
  readonly site: string;
  readonly kind: CollectiveRequest["kind"];
  /** Payload that each rank contributes, in bytes. */
  readonly bytes: readonly number[];
  /** Milliseconds that each rank computed between the collective before and this one. Not deterministic. */
  readonly computeMs: readonly number[];
}

export interface StepRecord {
  /** Of the simulation, from 0. */
  readonly step: number;
  readonly tokens: number;
  readonly sequences: number;
  readonly collectives: readonly CollectiveRecord[];
  /** Milliseconds that each rank computed after the last collective. */
  readonly tailMs: readonly number[];
}

export interface CollectiveTrace {
  readonly worldSize: number;
  /** Bytes of each rank's parameters: what a decode step reads. */
  readonly parameterBytes: readonly number[];
  readonly steps: readonly StepRecord[];
}

/** Writes a trace while ranks take turns. */
export class TraceRecorder {
  readonly #worldSize: number;
  readonly #payload: CollectivePayload;
  readonly #steps: StepRecord[] = [];
  #started = 0;
  #collectives: CollectiveRecord[] = [];
  #computeMs: number[] = [];

  constructor(worldSize: number, payload: CollectivePayload = "f32") {
    this.#worldSize = worldSize;
    this.#payload = payload;
  }

  get steps(): readonly StepRecord[] {
    return this.#steps;
  }

  /** Index of the step that runs, or comes next. */
  get step(): number {
    return this.#started;
  }

  /** Collectives of the current step so far. */
  get sequence(): number {
    return this.#collectives.length;
  }

  startStep(): void {
    this.#collectives = [];
    this.#computeMs = this.#zeros();
  }

  advanced(rank: number, elapsedMs: number): void {
    this.#computeMs[rank] = elapsedMs;
  }

  carriedOut(requests: readonly CollectiveRequest[]): void {
    const [first] = requests;
    if (first === undefined) return;
    this.#collectives.push({
      sequence: this.#collectives.length + 1,
      site: first.site ?? "",
      kind: first.kind,
      bytes: requests.map((request, rank) => payloadBytes(request, rank, this.#payload)),
      computeMs: this.#computeMs,
    });
    this.#computeMs = this.#zeros();
  }

  endStep(tokens: number, sequences: number): StepRecord {
    const record = {
      step: this.#started++,
      tokens,
      sequences,
      collectives: this.#collectives,
      tailMs: this.#computeMs,
    };
    this.#steps.push(record);
    return record;
  }

  #zeros(): number[] {
    return new Array<number>(this.#worldSize).fill(0);
  }
}
