/** Decoding several sequences at once: tokens a second of all of them together. */
import { sampleLineUp, withLineUp } from "./contestants/line-up.js";
import type { Bench } from "./frame/bench.js";
import { makeRow, type PeerStatus, type Row, shareOf } from "./frame/result.js";
import { chooseModels } from "./models/choose-models.js";
import { weightCounts } from "./models/shapes.js";

const BATCHES = [4, 8, 16, 32];
/** Short, so that attention costs little; the prompts of the largest batch fit in one step. */
const CONTEXT_TOKENS = 16;

export const batch: Bench = async (context) => {
  const { options, limits } = context;
  const { tokens } = options;
  const rows: Row[] = [];
  let peers: readonly PeerStatus[] = [];
  for (const model of await chooseModels(context)) {
    const { shape, weights } = model;
    const counts = weightCounts(shape);
    const capacity = { contextTokens: CONTEXT_TOKENS + tokens + 16, sequences: Math.max(...BATCHES) };
    await withLineUp(context, model, capacity, async (lineUp) => {
      peers = lineUp.peers;
      for (const sequences of BATCHES) {
        const work = { sequences, contextTokens: CONTEXT_TOKENS, tokens };
        const row = makeRow({
          subject: { model: shape.name, weights, sequences, tokens },
          unit: "tokens/s",
          better: "higher",
          sampled: await sampleLineUp(context, lineUp, (contestant) => contestant.decode(work)),
          limitOf: (rate) =>
            shareOf("f32 peak", (rate * 2 * (counts.layers + counts.head)) / 1e9, limits?.fmaGflops.all, "GFLOP/s"),
          validated: lineUp.validated,
        });
        rows.push(row);
      }
    });
  }
  return { rows, peers };
};
