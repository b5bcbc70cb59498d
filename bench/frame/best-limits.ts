/** Limits of the machine as a bench compares with them. */
import { type MachineLimits, measureLimits, type ProbeOptions, type Scaling } from "../../src/kernels/probe.js";

/** A limit that other work has disturbed would flatter whoever is compared with it. */
const TRIES = 3;

/** The best of several measurements, figure by figure; null where the addon, which measures, is not there. */
export function bestLimits(options: ProbeOptions): MachineLimits | null {
  const measured = Array.from({ length: TRIES }, () => measureLimits(options));
  return measured.reduce((best, next) => (best === null || next === null ? next : betterOf(best, next)));
}

/** The higher of two rates, the lower of two times. */
export function betterOf(a: MachineLimits, b: MachineLimits): MachineLimits {
  const { exchange: x } = a;
  const { exchange: y } = b;
  return {
    isa: a.isa,
    threads: a.threads,
    readGBs: higher(a.readGBs, b.readGBs),
    fmaGflops: higher(a.fmaGflops, b.fmaGflops),
    dotInt8Gops: higher(a.dotInt8Gops, b.dotInt8Gops),
    dotBf16Gflops:
      a.dotBf16Gflops === null || b.dotBf16Gflops === null
        ? (a.dotBf16Gflops ?? b.dotBf16Gflops)
        : higher(a.dotBf16Gflops, b.dotBf16Gflops),
    exchange:
      x === null || y === null
        ? (x ?? y)
        : {
            cacheLineNs: Math.min(x.cacheLineNs, y.cacheLineNs),
            wakeMicros: Math.min(x.wakeMicros, y.wakeMicros),
            forkJoinMicros: Math.min(x.forkJoinMicros, y.forkJoinMicros),
          },
  };
}

const higher = (a: Scaling, b: Scaling): Scaling => ({ one: Math.max(a.one, b.one), all: Math.max(a.all, b.all) });
