/**
 * Loading a warm file: from nothing to the first token of an answer, and what the ranks read meanwhile beside what the
 * machine can read at most. Every sample is a process of its own, with as much memory at hand as the model takes.
 */

import { setupsOf } from "./contestants/line-up.js";
import { startShardloom } from "./contestants/shardloom.js";
import { alternate } from "./frame/alternate.js";
import type { Bench, BenchContext } from "./frame/bench.js";
import { makeRow, type PeerStatus, type Row, shareOf } from "./frame/result.js";
import { type Contestant, type FirstToken, haveMemory, lineUpOf, warmReadOf } from "./load/contestants.js";
import { FIRST_TOKEN_CAPACITY } from "./load/first-token-work.js";
import type { WarmRead } from "./load/warm-read.js";
import { chooseModels } from "./models/choose-models.js";
import type { BenchModel } from "./models/model-store.js";
import { referenceAnswer, validate } from "./models/validation.js";

export const load: Bench = async (context) => {
  const rows: Row[] = [];
  let peers: readonly PeerStatus[] = [];
  for (const model of await chooseModels(context)) {
    await haveMemory(model);
    const read = await warmReadOf(model);
    if (read !== null) {
      const { touchedGBs, freshGBs, touchMsPerGB } = read;
      context.report(
        `${model.shape.name} ${model.weights}: warm read ${touchedGBs.toFixed(1)} GB/s, into fresh memory ` +
          `${freshGBs.toFixed(1)}: the first touch takes ${touchMsPerGB.toFixed(0)} ms/GB`,
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
  const reads = new Map<string, FirstToken[]>();
  const samples = await alternate(contestants, options.rounds, async (contestant) => {
    await haveMemory(model);
    const { firstTokenMs, read: own } = await contestant.load();
    const loaded = own === null ? "" : `, of it ${own.readMs.toFixed(0)} for loading`;
    report(`${contestant.name}: ${firstTokenMs.toFixed(0)} ms${loaded}`);
    if (own !== null) reads.set(contestant.name, [...(reads.get(contestant.name) ?? []), own]);
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
  const touchMsPerGB = read?.touchMsPerGB ?? 0;
  const reading = makeRow({
    subject: { ...subject, what: "while ranks load, without the first touch" },
    unit: "GB/s",
    better: "higher",
    sampled: ours.map(({ name }) => {
      // The round that warms up came first.
      return { name, peer: false, samples: (reads.get(name) ?? []).slice(1).map((own) => rateOf(own, touchMsPerGB)) };
    }),
    limitOf: (rate) => shareOf("warm read into touched memory", rate, read?.touchedGBs, "GB/s"),
    validated,
  });
  return [first, reading];
}

/** GB/s at which ranks loaded, had they not been the first to touch their memory. */
function rateOf({ bytesRead, readMs }: FirstToken, touchMsPerGB: number): number {
  const gigabytes = bytesRead / 1e9;
  return (gigabytes / (readMs - gigabytes * touchMsPerGB)) * 1000;
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
