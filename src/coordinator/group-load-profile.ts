/** The load profile of a group of ranks, of what each of them recorded and what is known of the process. */
import { availableParallelism, cpus } from "node:os";
import { weightBytes } from "../checkpoint/weight-bytes.js";
import { dummyLoader } from "../loading/dummy-loader.js";
import { assembleLoadProfile, type LoadProfile, type LoadSubject } from "../loading/load-profile.js";
import type { RankReport } from "../rank/model-runner.js";
import type { RankOptions } from "../rank/rank-options.js";

/** Now, in milliseconds of the Unix epoch and fractions of them: the origin of a profile. */
export function profileOrigin(): number {
  return performance.timeOrigin + performance.now();
}

/** Puts the records of all ranks together, which were started with this origin; `model` is what the user calls it. */
export function groupLoadProfile(
  reports: readonly RankReport[],
  { path, loadFormat, quantization, dtype }: RankOptions,
  { model, originMs }: { readonly model: string; readonly originMs: number },
): LoadProfile {
  const records = reports.flatMap(({ profile }) => (profile === undefined ? [] : [profile]));
  const subject: LoadSubject = {
    model,
    loadFormat,
    quantization: quantization?.method ?? null,
    dtype,
    // Of a model whose weights are made up there may still be files.
    checkpointBytes: loadFormat === dummyLoader.format ? 0 : weightBytes(path),
  };
  const machine = {
    platform: process.platform,
    arch: process.arch,
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    node: process.version,
  };
  // Kilobytes on every system: libuv sees to it.
  const peakMemoryBytes = process.resourceUsage().maxRSS * 1024;
  return assembleLoadProfile(
    { startedAt: new Date(originMs).toISOString(), subject, machine, peakMemoryBytes },
    records,
  );
}
