/** Random fault schedules for the soak: how they are drawn, how they read, and what each of them must end in. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { ShardloomError } from "../../src/core/errors.js";
import type { Engine } from "../../src/engine/engine.js";
import type { SamplingOptions } from "../../src/engine/sampling.js";
import {
  describeFault,
  type Fault,
  type FaultSchedule,
  type SimulateOptions,
  simulate,
} from "../../src/testing/index.js";

/** A model, and the answers it gives when nothing goes wrong. */
export interface Subject {
  readonly name: string;
  readonly model: Pick<SimulateOptions, "model" | "config" | "seed">;
  /** Requests that are in flight together, and their answers. */
  readonly requests: readonly SoakRequest[];
  readonly maxWorldSize: number;
}

export interface SoakRequest {
  readonly promptTokenIds: readonly number[];
  readonly sampling: SamplingOptions;
  readonly answer: readonly number[];
}

/** What happens on so many ranks when nothing goes wrong. */
export interface Facts {
  /** Names of the checkpoint's tensors, in its order; every rank reads some of each. */
  readonly tensors: readonly string[];
  /** Names of parameters: each rank allocates them all. */
  readonly parameters: readonly string[];
  /** The last collective of each step, counted from 1 through all of them. */
  readonly stepEnds: readonly number[];
}

export interface FaultCase {
  readonly subject: Subject;
  readonly facts: Facts;
  readonly worldSize: number;
  readonly verifyCollectives: boolean;
  readonly faults: FaultSchedule;
}

/** More than any deadline of the soak: as good as a hang. */
const LATE_MS = 3_600_000;

/** Kinds of faults, and how often they are drawn. */
export type FaultWeights = readonly (readonly [DrawnKind, number])[];

type DrawnKind =
  | "throw"
  | "delay"
  | "late"
  | "hang"
  | "exit"
  | "exhaust"
  | "corruptSent"
  | "corruptReceived"
  | "flipReceived"
  | "throwAtTensor"
  | "delayAtTensor"
  | "hangAtTensor"
  | "exitAtTensor"
  | "shortRead"
  | "refuseMemory"
  | "corruptTensor";

/** Where, as numbers that any world size and model can make use of. */
interface Draw {
  readonly kind: DrawnKind;
  readonly rank: number;
  readonly place: number;
  readonly byName: boolean;
  readonly element: number;
  readonly delayMs: number;
}

/** Observes an undisturbed run. Throws AssertionError unless the answers are those of the subject. */
export async function observe(subject: Subject, worldSize: number): Promise<Facts> {
  const simulation = await simulate({ ...subject.model, worldSize });
  try {
    const outcomes = await askAll(simulation.engine, subject.requests);
    for (const [i, { answer }] of subject.requests.entries()) assert.deepEqual(outcomes[i], { tokenIds: answer });
    const checkpoint = await simulation.openCheckpoint();
    const tensors = [...checkpoint.tensors.keys()];
    checkpoint.close();
    for (const rank of simulation.ranks) {
      const read = new Set(rank.parameters.flatMap(({ slices }) => slices.map(({ tensor }) => tensor)));
      assert.equal(read.size, tensors.length, `rank ${rank.rank} reads every tensor`);
    }
    let end = 0;
    const stepEnds = simulation.trace.steps.map(({ collectives }) => (end += collectives.length));
    return { tensors, parameters: simulation.ranks[0]?.parameters.map(({ name }) => name) ?? [], stepEnds };
  } finally {
    await simulation.close();
  }
}

/** Cases over subjects, at the world sizes from 1 at which they have been observed. */
export function faultCases(
  observed: ReadonlyMap<Subject, readonly Facts[]>,
  weights: FaultWeights,
): fc.Arbitrary<FaultCase> {
  const kinds = weights.map(([kind, weight]) => ({ weight, arbitrary: fc.constant(kind) }));
  const draw = fc.record({
    kind: fc.oneof(...kinds),
    rank: fc.nat(63),
    place: fc.nat(9999),
    byName: fc.boolean(),
    element: fc.nat(40),
    delayMs: fc.integer({ min: 1, max: 20 }),
  });
  const subjects = [...observed.keys()];
  return fc
    .record({
      subject: fc.constantFrom(...subjects),
      worldSize: fc.integer({ min: 1, max: Math.max(...[...observed.values()].map((facts) => facts.length)) }),
      verifyCollectives: fc.boolean(),
      draws: fc.array(draw, { maxLength: 4 }),
    })
    .map(({ subject, worldSize: wanted, verifyCollectives, draws }) => {
      const seen = observed.get(subject) ?? [];
      const worldSize = Math.min(wanted, seen.length);
      const facts = seen[worldSize - 1] ?? assert.fail(`${subject.name} on ${worldSize} ranks`);
      const verified = verifyCollectives && worldSize > 1;
      const faults = withoutBlindSpots(draws.map((each) => faultOf(each, worldSize, facts, verified)));
      const drawn = { subject, facts, worldSize, verifyCollectives, faults };
      return Object.assign(drawn, { [fc.toStringMethod]: () => describeCase(drawn) });
    });
}

export function describeCase({ subject, worldSize, verifyCollectives, faults }: FaultCase): string {
  const lines = faults.map((fault) => `\n  - ${describeFault(fault)}`);
  const how = verifyCollectives ? ", collectives verified" : "";
  return `${subject.name} on ${worldSize} rank(s)${how}:${lines.join("") || " no fault"}`;
}

function faultOf(draw: Draw, worldSize: number, { tensors, parameters, stepEnds }: Facts, verified: boolean): Fault {
  const rank = draw.rank % worldSize;
  // Some come after the last collective, and never happen.
  const atCollective = { rank, collective: 1 + (draw.place % ((stepEnds.at(-1) ?? 0) + 3)) };
  const at = (
    names: readonly string[],
    numbers: number,
  ): { readonly rank: number; readonly tensor: string | number } => {
    return { rank, tensor: draw.byName ? (names[draw.place % names.length] ?? "") : 1 + (draw.place % numbers) };
  };
  const atTensor = at(tensors, tensors.length);
  // Unverified, only a NaN that is passed on is noticed: the first element, which later ones depend on.
  const element = verified ? draw.element : 0;
  switch (draw.kind) {
    case "throw":
      return { ...atCollective, kind: "throw" };
    case "hang":
      return { ...atCollective, kind: "hang" };
    case "delay":
      return { ...atCollective, kind: "delay", delayMs: draw.delayMs };
    case "late":
      return { ...atCollective, kind: "delay", delayMs: LATE_MS };
    case "exit":
      return { ...atCollective, kind: "exit", exitCode: draw.element };
    case "exhaust":
      return { ...atCollective, kind: "outOfMemory" };
    case "corruptSent":
      return { ...atCollective, kind: "corrupt", payload: "sent" };
    case "corruptReceived":
      return { ...atCollective, kind: "corrupt", payload: "received", element };
    case "flipReceived":
      return { ...atCollective, kind: "corrupt", payload: "received", element, value: verified ? "flipped" : "nan" };
    case "throwAtTensor":
      return { ...atTensor, kind: "throw" };
    case "delayAtTensor":
      return { ...atTensor, kind: "delay", delayMs: draw.delayMs };
    case "hangAtTensor":
      return { ...atTensor, kind: "hang" };
    case "exitAtTensor":
      return { ...atTensor, kind: "exit", exitCode: draw.element };
    case "shortRead":
      return { ...atTensor, kind: "shortRead" };
    case "refuseMemory":
      return { ...at(parameters, parameters.length), kind: "outOfMemory" };
    case "corruptTensor":
      return { ...atTensor, kind: "corrupt" };
  }
}

/** Two copies that are corrupted in the same way agree: at most one at a collective. */
function withoutBlindSpots(faults: FaultSchedule): FaultSchedule {
  const seen = new Set<number>();
  return faults.filter((fault) => {
    if (fault.kind !== "corrupt" || !("payload" in fault)) return true;
    const first = !seen.has(fault.collective);
    seen.add(fault.collective);
    return first;
  });
}

/** What became of one request. */
export interface RequestOutcome {
  readonly tokenIds: readonly number[];
  readonly error?: ShardloomError;
}

/** Sends all requests at once and waits for all of their ends. */
export function askAll(engine: Engine, requests: readonly SoakRequest[]): Promise<RequestOutcome[]> {
  return Promise.all(
    requests.map(async ({ promptTokenIds, sampling }) => {
      const tokenIds: number[] = [];
      try {
        for await (const delta of engine.generate({ promptTokenIds, sampling })) tokenIds.push(...delta.tokenIds);
        return { tokenIds };
      } catch (error) {
        assert.ok(error instanceof ShardloomError, `expected an error of ours but received ${error}`);
        return { tokenIds, error };
      }
    }),
  );
}

/** An end that a schedule may come to: a code, and the ranks one of which the error must name. */
interface Ending {
  readonly code: string;
  readonly ranks: readonly number[];
}

export interface Expectation {
  /** How loading must end; empty if it must succeed. */
  readonly load: readonly Ending[];
  /** How the group may end in a step; empty if it may not. */
  readonly step: readonly Ending[];
  /** Whether it must. */
  readonly mustFail: boolean;
  /** Whether single requests may end in NON_FINITE_LOGITS. */
  readonly notFinite: boolean;
}

/** What the faults of a case must and may end in, from what their kinds promise. */
export function expectationOf({ facts, worldSize, verifyCollectives, faults }: FaultCase): Expectation {
  const verified = verifyCollectives && worldSize > 1;
  const happening = faults.filter((fault) => placeOf(fault) <= (facts.stepEnds.at(-1) ?? 0));
  const fatal: { readonly at: number; readonly ending: Ending; readonly sure: boolean }[] = [];
  const firstNaN = Math.min(...happening.filter((fault) => bringsNaN(fault, verified)).map(placeOf));
  for (const fault of happening.filter((each) => "collective" in each)) {
    const code = codeInStep(fault, faults, worldSize, verified);
    if (code === null) continue;
    const at = placeOf(fault);
    // A NaN in place of what has become a NaN before is no change.
    const sure = fault.kind !== "corrupt" || fault.value === "flipped" || at < firstNaN;
    fatal.push({ at, ending: { code, ranks: [fault.rank] }, sure });
  }
  const first = Math.min(...fatal.filter(({ sure }) => sure).map(({ at }) => at));
  // A NaN is noticed when its step is over, and may then end a request: fewer steps follow, or none.
  const noticed = facts.stepEnds.find((end) => end >= firstNaN) ?? Number.POSITIVE_INFINITY;
  const mustFail = Number.isFinite(first) && first <= noticed;
  const reachable = fatal.filter(({ at }) => !mustFail || at <= first);
  return {
    load: endingsOfLoad(faults),
    step: reachable.map(({ ending }) => ending),
    mustFail,
    notFinite: Number.isFinite(firstNaN) && !(mustFail && first < firstNaN),
  };
}

/** Number of the collective, or 0 for what happens before the first. */
function placeOf(fault: Fault): number {
  return "collective" in fault ? fault.collective : 0;
}

/** Whether ranks go on with a NaN. */
function bringsNaN(fault: Fault, verified: boolean): boolean {
  return fault.kind === "corrupt" && !("payload" in fault && fault.payload === "received" && verified);
}

function endingsOfLoad(faults: FaultSchedule): Ending[] {
  return faults.flatMap((fault) => {
    if (!("tensor" in fault)) return [];
    const ranks = [fault.rank];
    switch (fault.kind) {
      case "throw":
        return [{ code: "INJECTED_FAULT", ranks }];
      case "hang":
        return [{ code: "RANK_TIMEOUT", ranks }];
      case "exit":
        return [{ code: "RANK_EXITED", ranks }];
      case "shortRead":
        return [{ code: "SHORT_READ", ranks }];
      case "outOfMemory":
        return [{ code: "OUT_OF_MEMORY", ranks }];
      default:
        return [];
    }
  });
}

function codeInStep(fault: Fault, faults: FaultSchedule, worldSize: number, verified: boolean): string | null {
  switch (fault.kind) {
    case "throw":
      return "INJECTED_FAULT";
    case "exit":
    case "outOfMemory":
      return "RANK_EXITED";
    case "hang":
    case "delay": {
      if (!isPause(fault)) return null;
      const away = faults.filter((each) => isPause(each) && placeOf(each) === placeOf(fault));
      // When nobody arrives nobody waits: it is the coordinator who finds out.
      return new Set(away.map(({ rank }) => rank)).size === worldSize ? "RANK_TIMEOUT" : "COLLECTIVE_TIMEOUT";
    }
    case "corrupt":
      return "payload" in fault && fault.payload === "received" && verified ? "COLLECTIVE_CORRUPTED" : null;
    case "shortRead":
      return null;
  }
}

/** Whether a rank stays away for longer than anybody waits. */
export function isPause(fault: Fault): boolean {
  return fault.kind === "hang" || (fault.kind === "delay" && fault.delayMs >= LATE_MS);
}

/** Checks the error of loading. */
export function checkLoadError(expected: Expectation, error: unknown): void {
  assert.ok(error instanceof ShardloomError, `expected an error of ours but received ${error}`);
  checkEnding(expected.load, error);
  if (error.code === "SHORT_READ") assert.ok(error.details.file !== undefined && error.details.tensor !== undefined);
}

/** Checks what became of the requests: every token is right, and every error is one that the faults promise. */
export function checkOutcomes(
  { subject }: FaultCase,
  expected: Expectation,
  outcomes: readonly RequestOutcome[],
): void {
  assert.deepEqual(expected.load, [], "loading must fail");
  const failures: ShardloomError[] = [];
  for (const [i, { answer }] of subject.requests.entries()) {
    const { tokenIds, error } = outcomes[i] ?? assert.fail("a request without an outcome");
    assert.deepEqual(tokenIds, answer.slice(0, tokenIds.length), "a wrong token");
    if (error === undefined) assert.equal(tokenIds.length, answer.length, "an answer that is not whole");
    else if (error.code === "NON_FINITE_LOGITS") assert.ok(expected.notFinite, error.message);
    else failures.push(error);
  }
  for (const error of failures) checkEnding(expected.step, error);
  assert.equal(new Set(failures.map(({ code }) => code)).size, failures.length === 0 ? 0 : 1, "requests that differ");
  if (expected.mustFail) assert.ok(failures.length > 0, "no request failed");
}

function checkEnding(allowed: readonly Ending[], error: ShardloomError): void {
  const { rank, missingRanks = "", ranks = "" } = error.details;
  const named = [...`${missingRanks},${ranks}`.split(",").filter((text) => text !== ""), String(rank)].map(Number);
  const found = allowed.some(
    (ending) => ending.code === error.code && ending.ranks.some((each) => named.includes(each)),
  );
  const wanted =
    allowed.map((ending) => `${ending.code} of rank ${ending.ranks.join(", ")}`).join(" or ") || "no error";
  assert.ok(found, `expected ${wanted} but received ${error.code} of ranks ${named.join(", ")}: ${error.message}`);
}
