import { bytesOf } from "../core/tensor.js";
import type { Collective, CollectiveRequest } from "./collective.js";

/** The collective of world size 1: everybody is here already. */
export const singleRank: Collective = {
  rank: 0,
  worldSize: 1,
  execute(request: CollectiveRequest): void {
    if (request.kind !== "allGather") return;
    const { data, out, rows, widths } = request;
    const width = (widths[0] ?? 0) * 4;
    const source = bytesOf(data.tensor);
    const destination = bytesOf(out.tensor);
    for (let m = 0; m < rows; m++) {
      const from = m * data.columns * 4;
      destination.set(source.subarray(from, from + width), m * out.columns * 4);
    }
  },
  abort(): void {},
};
