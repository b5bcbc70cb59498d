import type { CollectiveRequest } from "./collective.js";
import type { CollectivePayload } from "./payload.js";

/** Bytes that a rank puts into a collective. Elements have four bytes, but for those of all-reduces that carry bf16. */
export function payloadBytes(request: CollectiveRequest, rank: number, payload: CollectivePayload = "f32"): number {
  switch (request.kind) {
    case "allReduce":
      return (payload === "bf16" ? 2 : 4) * request.count;
    case "allGather":
      return 4 * request.rows * (request.widths[rank] ?? 0);
    case "broadcast":
      return rank === request.root ? 4 * request.count : 0;
    case "barrier":
      return 0;
  }
}
