/** Reading a prompt up to the first token of the answer: tokens a second, and the arithmetic of them beside the peak. */
import { LONG_PROMPT, sampleLineUp, withLineUp } from "./contestants/line-up.js";
import type { Bench } from "./frame/bench.js";
import { makeRow, type PeerStatus, type Row, shareOf } from "./frame/result.js";
import { chooseModels } from "./models/choose-models.js";
import { weightCounts } from "./models/shapes.js";

export const prefill: Bench = async (context) => {
  const { options, limits } = context;
  const rows: Row[] = [];
  let peers: readonly PeerStatus[] = [];
  for (const model of await chooseModels(context)) {
    const { shape, weights } = model;
    await withLineUp(
      context,
      model,
      { contextTokens: Math.max(...options.prompts) + 16, sequences: 1 },
      async (lineUp) => {
        peers = lineUp.peers;
        for (const tokens of options.prompts) {
          // The head computes the last token only.
          const flopsPerToken = 2 * (weightCounts(shape).layers + weightCounts(shape).head / tokens);
          const row = makeRow({
            subject: { model: shape.name, weights, prompt: tokens },
            unit: "tokens/s",
            better: "higher",
            sampled: await sampleLineUp(
              context,
              lineUp,
              (contestant) => contestant.prefill(tokens),
              tokens < LONG_PROMPT,
            ),
            limitOf: (rate) => shareOf("f32 peak", (rate * flopsPerToken) / 1e9, limits?.fmaGflops.all, "GFLOP/s"),
            validated: lineUp.validated,
          });
          rows.push(row);
        }
      },
    );
  }
  return { rows, peers };
};
