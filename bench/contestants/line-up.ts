/** Puts the contestants of one model together, checks them, and times them in turns. */
import { alternate, type Measure } from "../frame/alternate.js";
import type { BenchContext } from "../frame/bench.js";
import type { PeerStatus, Sampled } from "../frame/result.js";
import type { BenchModel } from "../models/model-store.js";
import { referenceAnswer, validate } from "../models/validation.js";
import type { Capacity, Contestant } from "./contestant.js";
import { llamaCppStatus, startLlamaCpp } from "./llama-cpp.js";
import { nodeLlamaCppStatus, startNodeLlamaCpp } from "./node-llama-cpp.js";
import { type Setup, startShardloom } from "./shardloom.js";

/** A prompt of so many tokens takes long enough to need no warm-up. */
export const LONG_PROMPT = 4096;

export interface LineUp {
  readonly contestants: readonly Contestant[];
  readonly peers: readonly PeerStatus[];
  readonly validated: readonly string[];
}

/** The ways in which shardloom runs, as the user asked. */
export function setupsOf({ options }: BenchContext): Setup[] {
  const { tp, threadsPerRank, activations } = options;
  return tp.flatMap((tensorParallelSize) =>
    threadsPerRank.flatMap((threads) =>
      activations.map((level) => ({
        name: ["shardloom", `tp${tensorParallelSize}`, threads === "auto" ? "" : `x${threads}`, level]
          .filter((part) => part !== "" && part !== "auto")
          .join(" "),
        options: { tensorParallelSize, threadsPerRank: threads, activations: level },
      })),
    ),
  );
}

/**
 * Runs `body` with the contestants of a model, in memory and checked against the reference kernels, and closes them
 * whatever happens. Peers that are not there are left out, with the reason.
 */
export async function withLineUp<T>(
  context: BenchContext,
  model: BenchModel,
  capacity: Capacity,
  body: (lineUp: LineUp) => Promise<T>,
): Promise<T> {
  const { options, report } = context;
  const { peerModel = model } = model;
  const peers = options.peers ? [nodeLlamaCppStatus(), await llamaCppStatus(options.llamaBench, peerModel)] : [];
  const [inNode, native] = peers;
  const contestants: Contestant[] = [];
  try {
    for (const setup of setupsOf(context)) contestants.push(await startShardloom(model, setup, capacity));
    if (inNode?.absent === null) contestants.push(await startNodeLlamaCpp(peerModel, options.threads, capacity));
    if (native?.absent === null && options.llamaBench !== null) {
      contestants.push(startLlamaCpp(options.llamaBench, peerModel, options.threads));
    }
    const validated: string[] = [];
    for (const contestant of contestants) {
      const own = contestant.peer ? peerModel : model;
      validated.push(await validate(contestant, own, await referenceAnswer(own, report)));
    }
    return await body({ contestants, peers, validated });
  } finally {
    await Promise.all(contestants.map((contestant) => contestant.close()));
  }
}

/** Samples of all contestants, in turns (frame/alternate.ts). */
export async function sampleLineUp(
  { options, report }: BenchContext,
  { contestants }: LineUp,
  measure: Measure<Contestant>,
  warmUp = true,
): Promise<Sampled[]> {
  const sampleOne = async (contestant: Contestant): Promise<number> => {
    const sample = await measure(contestant);
    report(`${contestant.name}: ${sample.toPrecision(3)}`);
    return sample;
  };
  const samples = await alternate(contestants, options.rounds, sampleOne, warmUp);
  return contestants.map(({ name, peer }, index) => ({ name, peer, samples: samples[index] ?? [] }));
}
