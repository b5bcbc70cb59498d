/** A whole model in the plugin's format through the simulator, on as many ranks as can share it. */
import { PartitionError } from "../core/errors.js";
import { rangeSize } from "../parallel/partition.js";
import { SimulationAssertionError } from "./assertion-error.js";
import type { PluginCheck } from "./conformance-check.js";
import type { Subject } from "./conformance-fixture.js";
import { MOST_RANKS } from "./conformance-layers.js";
import { failed, isTyped, within } from "./conformance-load.js";
import { expectOwnedOnce } from "./expect-owned-once.js";
import { expectRanksAgree } from "./expect-ranks-agree.js";
import { expectReassembles } from "./expect-reassembles.js";
import { expectSameLogits } from "./expect-same-logits.js";
import { simulate } from "./simulate.js";
import type { Simulation } from "./simulation.js";

const DEFAULT_LOGITS_TOLERANCE = 1e-4;
const PROMPT = 6;

export function wholeModelChecks(subject: Subject): readonly PluginCheck[] {
  const check = (what: string, run: () => Promise<void>): PluginCheck => ({ name: `${subject.name}: ${what}`, run });
  return [
    check("a whole model is held once, and as one rank holds it, on 2 to 8 ranks", () => {
      return onRanks(subject, async (simulation) => {
        expectOwnedOnce(simulation);
        await expectReassembles(simulation);
      });
    }),
    check("a whole model computes what one rank computes on 2 to 8 ranks, the same on all of them", () => {
      return onRanks(subject, (simulation) => checkLogits(subject, simulation));
    }),
  ];
}

async function checkLogits({ fixture }: Subject, simulation: Simulation): Promise<void> {
  const reference = await simulation.unsharded();
  const promptTokenIds = Array.from({ length: PROMPT }, (_, i) => (i * 31 + 5) % simulation.config.vocabularySize);
  const largest = reference
    .logits(promptTokenIds)
    .flat()
    .reduce((most, row) => {
      return row.reduce((inner, logit) => Math.max(inner, Math.abs(logit)), most);
    }, 0);
  if (!Number.isFinite(largest)) {
    throw new SimulationAssertionError(`logits of one rank: expected numbers but the largest is ${largest}`, {
      expected: "numbers",
      received: largest,
    });
  }
  const { logitsTolerance = DEFAULT_LOGITS_TOLERANCE } = fixture;
  expectSameLogits(simulation, reference, logitsTolerance * largest, { promptTokenIds, decodeSteps: 2 });
  expectRanksAgree(simulation);
}

/** Every world size that the model can be split into, and the format does not refuse where it may. */
async function onRanks(subject: Subject, use: (simulation: Simulation) => Promise<void>): Promise<void> {
  let served = 0;
  for (let worldSize = 2; worldSize <= MOST_RANKS; worldSize++) {
    const simulation = await load(subject, worldSize);
    if (simulation === null) continue;
    try {
      await within(`${worldSize} ranks`, {}, () => use(simulation));
      served++;
    } catch (error) {
      if (!(error instanceof SimulationAssertionError)) throw error;
      const located = new SimulationAssertionError(`${worldSize} ranks: ${error.message}`, error.details);
      located.cause = error.cause;
      throw located;
    } finally {
      await simulation.close();
    }
  }
  if (served > 0) return;
  throw new SimulationAssertionError("expected a model that 2 to 8 ranks can share but no number of them can", {
    expected: "2 to 8 ranks",
    received: "none",
  });
}

async function load(subject: Subject, worldSize: number): Promise<Simulation | null> {
  try {
    return await simulate({ ...subject.options(worldSize), kernels: "reference" });
  } catch (error) {
    if (error instanceof PartitionError) return null;
    if (isTyped(error) && (await mayRefuse(subject, worldSize))) return null;
    throw failed(`the model on ${worldSize} ranks`, error);
  }
}

/** Whether the partition cuts some matrix where the format does not say that it can be cut. */
async function mayRefuse(subject: Subject, worldSize: number): Promise<boolean> {
  const { outputs, inputs } = subject.cutsAt;
  if (outputs === 1 && inputs === 1) return false;
  const { ranks } = await subject.prepare(worldSize);
  const shapes = await simulate({ config: ranks.description.config, worldSize, shapeOnly: true });
  return shapes.ranks.some(({ layers }) =>
    layers.some(({ plan }) => {
      const within = (start: number, end: number, total: number, unit: number): boolean => {
        return start % unit === 0 && (end % unit === 0 || end === total);
      };
      const whole = within(plan.inputs.start, plan.inputs.end, plan.inputSize, inputs);
      return (
        !whole ||
        plan.parts.some(({ rows, outputSize }) => {
          return rangeSize(rows) > 0 && !within(rows.start, rows.end, outputSize, outputs);
        })
      );
    }),
  );
}
