/** Which kernels this thread uses, and why: for the log and for `shardloom doctor`. */
import { nativeAddon } from "../core/native-addon.js";

/** Plain data. */
export interface KernelSelection {
  readonly backend: "native" | "reference";
  /** Instruction set in use; null for the reference kernels. */
  readonly isa: string | null;
  /** Instruction sets that this machine can run, best first; none where the addon is not loaded. */
  readonly supported: readonly string[];
  /** Why it is these, in words. */
  readonly reason: string;
}

/** Says what `createKernels` selects. Never throws: where that throws, the reason says what stands in the way. */
export function kernelSelection(): KernelSelection {
  const native = nativeAddon();
  if (!native.loaded) return { backend: "reference", isa: null, supported: [], reason: native.reason };
  const { isa, supportedIsas: supported } = native.addon;
  const forced = process.env["SHARDLOOM_ISA"] ?? "";
  const reason = forced === "" ? "the best that this CPU and system can run" : `SHARDLOOM_ISA=${forced}`;
  return { backend: "native", isa, supported, reason };
}
