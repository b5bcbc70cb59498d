/**
 * Loading a warm file: from nothing to the first token of an answer, and what the ranks read meanwhile beside what the
 * machine can read at most. Every sample loads anew; peers in a process of their own, whose start counts for them as ours
 * does for us: the process of this bench runs already, so shardloom's threads start and its addon does not.
 */

import { setupsOf } from "./contestants/line-up.js";
import { startShardloom } from "./contestants/shardloom.js";
import { alternate } from "./frame/alternate.js";
import type { Bench, BenchContext } from "./frame/bench.js";
import { makeRow, type PeerStatus, type Row, shareOf } from "./frame/result.js";
import { type Contestant, FIRST_TOKEN_CAPACITY, lineUpOf } from "./load/contestants.js";
import { measureWarmRead, type WarmRead, warm } from "./load/warm-read.js";
import { chooseModels } from "./models/choose-models.js";
import type { BenchModel } from "./models/model-store.js";
import { referenceAnswer, validate } from "./models/validation.js";

export const load: Bench = async (context) => {
  const rows: Row[] = [];
  let peers: readonly PeerStatus[] = [];
  for (const model of await chooseModels(context)) {
    warm(model.path);
    const read = measureWarmRead(model.path);
    if (read !== null) {
      const { touchedGBs, freshGBs } = read;
      context.report(
        `${model.shape.name} ${model.weights}: warm read ${touchedGBs.toFixed(1)} GB/s, into fresh memory ${freshGBs.toFixed(1)}`,
      );
    }
    const lineUp = await lineUpOf(context, model);
    peers = lineUp.peers;
    rows.push(...(await measure(context, model, lineUp.contestants, read)));
  }
  return { rows, peers };
};

async function measure(
  context: BenchContext,
  model: BenchModel,
  contestants: readonly Contestant[],
  read: WarmRead | null,
): Promise<readonly Row[]> {
  const { options, report } = context;
  const validated = await check(context, model);
  const readGBs = new Map<string, number[]>();
  const samples = await alternate(contestants, options.rounds, async (contestant) => {
    const { firstTokenMs, bytesRead, readMs } = await contestant.load();
    report(`${contestant.name}: ${firstTokenMs.toFixed(0)} ms`);
    const rates = readGBs.get(contestant.name) ?? [];
    if (readMs !== null) rates.push(bytesRead / readMs / 1e6);
    readGBs.set(contestant.name, rates);
    return firstTokenMs;
  });
  const subject = { model: model.shape.name, weights: model.weights };
  const ofContestant = (index: number): readonly number[] => samples[index] ?? [];
  const first = makeRow({
    subject: { ...subject, what: "to the first token" },
    unit: "ms",
    better: "lower",
    sampled: contestants.map(({ name, peer }, i) => ({ name, peer, samples: ofContestant(i) })),
    limitOf: () => null,
    validated,
  });
  const ours = contestants.filter(({ peer }) => !peer);
  const reading = makeRow({
    subject: { ...subject, what: "while ranks load" },
    unit: "GB/s",
    better: "higher",
    // The round that warms up came first.
    sampled: ours.map(({ name }) => ({ name, peer: false, samples: readGBs.get(name)?.slice(1) ?? [] })),
    limitOf: (rate) => shareOf("warm read into fresh memory", rate, read?.freshGBs, "GB/s"),
    validated,
  });
  return [first, reading];
}

/** Holds what is loaded to the reference kernels, once for each way to run. */
async function check(context: BenchContext, model: BenchModel): Promise<readonly string[]> {
  const reference = await referenceAnswer(model, context.report);
  const validated: string[] = [];
  for (const setup of setupsOf(context)) {
    const contestant = await startShardloom(model, setup, FIRST_TOKEN_CAPACITY);
    try {
      validated.push(await validate(contestant, model, reference));
    } finally {
      await contestant.close();
    }
  }
  return validated;
}
