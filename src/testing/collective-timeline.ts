import { type TraceDocument, type TraceSlice, traceDocument } from "../core/trace-events.js";
import type { CollectiveRecord, CollectiveTrace, StepRecord } from "./collective-trace.js";
import type { CostModel } from "./cost-model.js";

/**
 * A trace as a timeline that Perfetto opens: one track a rank, drawn as if the ranks ran side by side. On each track a
 * `step` encloses `compute`, `wait` (for the slowest rank) and the collective, named by its kind and the module that
 * asked for it. Collectives, and computing if the model says so, take as long as `costs` predicts.
 */
export function collectiveTimeline(trace: CollectiveTrace, costs: CostModel): TraceDocument {
  const tracks = Array.from({ length: trace.worldSize }, (_, rank) => ({ id: rank, name: `rank ${rank}` }));
  const slices: TraceSlice[] = [];
  let startUs = 0;
  for (const step of trace.steps) startUs = drawStep(slices, trace, step, costs, startUs);
  return traceDocument(tracks, slices, { worldSize: trace.worldSize, steps: trace.steps.length });
}

/** Returns when the step ends. */
function drawStep(
  slices: TraceSlice[],
  trace: CollectiveTrace,
  step: StepRecord,
  costs: CostModel,
  startUs: number,
): number {
  const compute = costs.computeMs(trace, step);
  let nowUs = startUs;
  compute.forEach((ranks, segment) => {
    const collective = step.collectives[segment];
    const slowestUs = Math.max(...ranks) * 1000;
    for (const [rank, ms] of ranks.entries()) {
      const next = collective?.site ?? "end of step";
      draw(slices, rank, `compute until ${next}`, "compute", nowUs, ms * 1000);
      draw(slices, rank, `wait at ${next}`, "wait", nowUs + ms * 1000, slowestUs - ms * 1000);
    }
    nowUs += slowestUs;
    if (collective === undefined) return;
    const takesUs = costs.collectiveUs(collective);
    drawCollective(slices, collective, step, nowUs, takesUs);
    nowUs += takesUs;
  });
  const { tokens, sequences } = step;
  for (let rank = 0; rank < trace.worldSize; rank++) {
    slices.push({
      track: rank,
      name: `step ${step.step}`,
      category: "step",
      startUs,
      durationUs: nowUs - startUs,
      args: { tokens, sequences },
    });
  }
  return nowUs;
}

function drawCollective(
  slices: TraceSlice[],
  { kind, site, sequence, bytes }: CollectiveRecord,
  { step }: StepRecord,
  startUs: number,
  durationUs: number,
): void {
  for (const [rank, sizeBytes] of bytes.entries()) {
    slices.push({
      track: rank,
      name: `${kind} ${site}`,
      category: "collective",
      startUs,
      durationUs,
      args: { step, sequence, site, bytes: sizeBytes },
    });
  }
}

/** Slices of no length would only hide others. */
function draw(
  slices: TraceSlice[],
  track: number,
  name: string,
  category: string,
  startUs: number,
  durationUs: number,
): void {
  if (durationUs > 0) slices.push({ track, name, category, startUs, durationUs });
}
