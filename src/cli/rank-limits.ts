/** What a rank can reach at most on this machine. */
import { availableParallelism } from "node:os";
import { measureLimits } from "../kernels/probe.js";
import type { RankLimits } from "./step-breakdown.js";

export interface RankLimitsRequest {
  readonly ranks: number;
  readonly threadsPerRank: number | "auto";
  /** What the user knows better. */
  readonly dramGbps: number | null;
  readonly fmaGflops: number | null;
}

/**
 * Measures, in about a second, what is not given: a rank's share of what all threads of all ranks reach together. Null
 * where the addon, whose loops measure it, is not loaded.
 */
export function rankLimits({ ranks, threadsPerRank, dramGbps, fmaGflops }: RankLimitsRequest): RankLimits {
  if (dramGbps !== null && fmaGflops !== null) return { dramGbps, fmaGflops };
  const auto = Math.max(1, Math.floor(availableParallelism() / ranks));
  const threads = ranks * (threadsPerRank === "auto" ? auto : threadsPerRank);
  const measured = measureLimits({ threads });
  const share = (all: number | undefined): number | null => (all === undefined ? null : all / ranks);
  return {
    dramGbps: dramGbps ?? share(measured?.readGBs.all),
    fmaGflops: fmaGflops ?? share(measured?.fmaGflops.all),
  };
}
