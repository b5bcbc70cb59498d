/** The machine that figures were taken on. */
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, platform, release, totalmem } from "node:os";
import { nativeAddon } from "../../src/core/native-addon.js";

export interface Machine {
  readonly cpu: string;
  /** What tells CPUs of one name apart: family, model and stepping; null where the system does not say. */
  readonly cpuModel: string | null;
  /** CPUs that this process may use. */
  readonly cpus: number;
  readonly memoryBytes: number;
  readonly system: string;
  readonly node: string;
  /** Instruction set of our kernels, or why they are the reference ones. */
  readonly kernels: string;
  /** Runnable tasks of the whole machine when the run started, averaged over a minute: more than 0 is company. */
  readonly load: number;
}

export function describeMachine(): Machine {
  const status = nativeAddon();
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cpuModel: cpuModel(),
    cpus: availableParallelism(),
    memoryBytes: totalmem(),
    system: `${platform()} ${release()}`,
    node: process.version,
    kernels: status.loaded ? status.addon.isa : `reference: ${status.reason}`,
    load: loadavg()[0] ?? 0,
  };
}

function cpuModel(): string | null {
  try {
    const text = readFileSync("/proc/cpuinfo", "utf8");
    const field = (name: string): string => new RegExp(`^${name}\\s*:\\s*(.*)$`, "m").exec(text)?.[1] ?? "?";
    return `${field("vendor_id")} family ${field("cpu family")} model ${field("model")} stepping ${field("stepping")}`;
  } catch {
    return null;
  }
}
