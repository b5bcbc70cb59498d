import type { CollectiveRequest } from "./collective.js";

/** Bytes that a rank puts into a collective. Elements of operands have four bytes. */
export function payloadBytes(request: CollectiveRequest, rank: number): number {
  switch (request.kind) {
    case "allReduce":
      return 4 * request.count;
    case "allGather":
      return 4 * request.rows * (request.widths[rank] ?? 0);
    case "broadcast":
      return rank === request.root ? 4 * request.count : 0;
    case "barrier":
      return 0;
  }
}
