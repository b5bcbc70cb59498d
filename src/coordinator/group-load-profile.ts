/** The load profile of a group of ranks, of what each of them recorded and what is known of the process. */
import { availableParallelism, cpus } from "node:os";
import { weightBytes } from "../checkpoint/weight-bytes.js";
import { dummyLoader } from "../loading/dummy-loader.js";
import {
  assembleLoadProfile,
  type LoadMachine,
  type LoadProfile,
  type LoadSubject,
  type RankLoadRecord,
} from "../loading/load-profile.js";
import { unpackLoadRecord } from "../loading/load-record.js";
import type { RankReport } from "../rank/model-runner.js";
import type { RankOptions } from "../rank/rank-options.js";

/** Now, in milliseconds of the Unix epoch and fractions of them: the origin of a profile. */
export function profileOrigin(): number {
  return performance.timeOrigin + performance.now();
}

/**
 * The profile of all ranks, which were started with this origin; `model` is what the user calls it. What may change is noted
 * now, and the records are put together when somebody asks, which takes milliseconds.
 */
export function groupLoadProfile(
  reports: readonly RankReport[],
  { path, loadFormat, quantization, dtype }: RankOptions,
  { model, originMs }: { readonly model: string; readonly originMs: number },
): () => LoadProfile {
  const subject: LoadSubject = {
    model,
    loadFormat,
    quantization: quantization?.method ?? null,
    dtype,
    // Of a model whose weights are made up there may still be files.
    checkpointBytes: loadFormat === dummyLoader.format ? 0 : weightBytes(path),
  };
  // Kilobytes on every system: libuv sees to it.
  const peakMemoryBytes = process.resourceUsage().maxRSS * 1024;
  const facts = { startedAt: new Date(originMs).toISOString(), subject, peakMemoryBytes };
  let made: LoadProfile | undefined;
  return () => {
    made ??= assembleLoadProfile({ ...facts, machine: machineFacts() }, recordsOf(reports));
    return made;
  };
}

function recordsOf(reports: readonly RankReport[]): readonly RankLoadRecord[] {
  return reports.flatMap(({ profile }) => (profile === undefined ? [] : [unpackLoadRecord(profile)]));
}

function machineFacts(): LoadMachine {
  return {
    platform: process.platform,
    arch: process.arch,
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    node: process.version,
  };
}
