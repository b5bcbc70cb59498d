/** Decoding one sequence: tokens a second, and the weights that are read for them beside what memory can deliver. */
import { LONG_PROMPT, sampleLineUp, withLineUp } from "./contestants/line-up.js";
import type { Bench } from "./frame/bench.js";
import { makeRow, type PeerStatus, type Row, shareOf } from "./frame/result.js";
import { chooseModels } from "./models/choose-models.js";

export const decode: Bench = async (context) => {
  const { options, limits } = context;
  const rows: Row[] = [];
  let peers: readonly PeerStatus[] = [];
  for (const model of await chooseModels(context)) {
    const { shape, weights, weightBytes } = model;
    const capacity = { contextTokens: options.context + options.tokens + 16, sequences: 1 };
    const work = { sequences: 1, contextTokens: options.context, tokens: options.tokens };
    const warmUp = options.context < LONG_PROMPT;
    rows.push(
      await withLineUp(context, model, capacity, async (lineUp) => {
        peers = lineUp.peers;
        return makeRow({
          subject: { model: shape.name, weights, context: options.context, tokens: options.tokens },
          unit: "tokens/s",
          better: "higher",
          sampled: await sampleLineUp(context, lineUp, (contestant) => contestant.decode(work), warmUp),
          limitOf: (rate) => shareOf("DRAM read", (rate * weightBytes) / 1e9, limits?.readGBs.all, "GB/s"),
          validated: lineUp.validated,
        });
      }),
    );
  }
  return { rows, peers };
};
