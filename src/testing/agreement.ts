/** Whether ranks hold the same bits where they must: compared while they run, after every collective. */
import type { CollectiveRequest } from "../collectives/collective.js";
import { payloadOf } from "../collectives/payload.js";
import { type ResultExtent, resultOf } from "../collectives/verified.js";
import type { Operand } from "../core/operand.js";
import type { Model } from "../models/model.js";

/** The first place in which a rank differs from rank 0. */
export interface Disagreement {
  readonly step: number;
  /** Of the collective, within the step, from 1. */
  readonly sequence: number;
  /** Module that asked for the collective. */
  readonly site: string;
  /** What was compared: `allReduce`, or the name of an activation. */
  readonly what: string;
  readonly rank: number;
  /** Row and column. */
  readonly index: readonly [number, number];
  /** On rank 0. */
  readonly expected: number;
  readonly received: number;
}

/** Later ones follow from the first few. */
const MAX_KEPT = 16;

export class AgreementMonitor {
  readonly disagreements: Disagreement[] = [];
  #models: readonly Model[] = [];
  #compared = 0;

  /** One model a rank, in rank order. */
  watch(models: readonly Model[]): void {
    this.#models = models;
  }

  /** Collectives compared so far. */
  get compared(): number {
    return this.#compared;
  }

  /** Compares what the ranks hold after a collective of a step of `tokens` tokens. */
  check(requests: readonly CollectiveRequest[], step: number, sequence: number, tokens: number): void {
    const [first] = requests;
    if (first === undefined) return;
    this.#compared++;
    const at = { step, sequence, site: first.site ?? "" };
    this.#compare(requests.map(resultOf), { ...at, what: first.kind });
    const count = this.#models[0]?.replicated.length ?? 0;
    for (let i = 0; i < count; i++) {
      const held = this.#models.map((model) => wholeRows(model.replicated[i], tokens));
      this.#compare(held, { ...at, what: held[0]?.operand.tensor.name ?? "" });
    }
  }

  #compare(
    held: readonly (ResultExtent | undefined)[],
    at: Pick<Disagreement, "step" | "sequence" | "site" | "what">,
  ): void {
    const [reference] = held;
    if (reference === undefined || this.disagreements.length >= MAX_KEPT) return;
    for (const [rank, other] of held.entries()) {
      if (other === undefined) continue;
      const differs = firstDifference(reference, other);
      if (differs < 0) continue;
      const { columns } = reference.operand;
      this.disagreements.push({
        ...at,
        rank,
        index: [Math.floor(differs / columns), differs % columns],
        expected: elementOf(reference, differs),
        received: elementOf(other, differs),
      });
      return;
    }
  }
}

function wholeRows(operand: Operand | undefined, rows: number): ResultExtent | undefined {
  return operand === undefined ? undefined : { operand, rows, width: operand.columns };
}

/** Index of the first element, counted over whole rows, whose bits differ; -1 if none does. */
function firstDifference({ operand, rows, width }: ResultExtent, other: ResultExtent): number {
  const a = payloadOf(operand).bits;
  const b = payloadOf(other.operand).bits;
  if (a === b) return -1;
  for (let row = 0; row < rows; row++) {
    const start = row * operand.columns;
    for (let i = start; i < start + width; i++) if (a[i] !== b[i]) return i;
  }
  return -1;
}

function elementOf({ operand }: ResultExtent, index: number): number {
  const { bits, f32 } = payloadOf(operand);
  return (operand.tensor.dtype === "f32" ? f32 : bits)[index] ?? 0;
}
