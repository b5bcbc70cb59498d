import type { Collective, CollectiveRequest } from "./collective.js";
import { copyColumns, payloadOf } from "./payload.js";
import { checkContribution, checkRequest } from "./request.js";

/** The collective of world size 1: everybody is here already. */
export const singleRank: Collective = {
  rank: 0,
  worldSize: 1,
  execute(request: CollectiveRequest): void {
    checkRequest(request, 1);
    if (request.kind !== "allGather") return;
    checkContribution(request, 0);
    const { data, out, rows, widths } = request;
    const width = widths[0] ?? 0;
    copyColumns(payloadOf(out).bits, out.columns, 0, payloadOf(data).bits, data.columns, width, rows);
  },
  abort(): void {},
};
