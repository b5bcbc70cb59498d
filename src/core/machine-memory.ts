/** How much memory there is for this process, and in which pages. */
import { freemem, totalmem } from "node:os";
import { cgroupFolders, fieldOf, systemText } from "./system-files.js";

/** Plain data. */
export interface MachineMemory {
  readonly totalBytes: number;
  /** What can be had without swapping, at the moment. */
  readonly availableBytes: number;
  /** What the control group of this process may use altogether; null for no limit. */
  readonly limitBytes: number | null;
  /** When the system gives transparent huge pages: always, when asked for (madvise), never; null where it has none. */
  readonly hugePages: string | null;
}

/** Reads /proc and /sys below `root`; what they do not tell, Node.js does. */
export function readMemory(root = "/"): MachineMemory {
  const table = systemText(root, "proc/meminfo");
  const modes = systemText(root, "sys/kernel/mm/transparent_hugepage/enabled");
  const totalBytes = kibibytes(fieldOf(table, "MemTotal")) ?? totalmem();
  return {
    totalBytes,
    availableBytes: kibibytes(fieldOf(table, "MemAvailable")) ?? freemem(),
    limitBytes: readLimit(root, totalBytes),
    hugePages: /\[(\w+)\]/.exec(modes ?? "")?.[1] ?? null,
  };
}

function kibibytes(text: string | null): number | null {
  const [, digits] = /^(\d+) kB$/.exec(text ?? "") ?? [];
  return digits === undefined ? null : Number(digits) * 1024;
}

/** The first version of control groups says "no limit" by a number beyond all memory. */
function readLimit(root: string, totalBytes: number): number | null {
  const limits = cgroupFolders(root, "memory").flatMap((folder) => {
    const text = systemText(root, folder, "memory.max") ?? systemText(root, folder, "memory.limit_in_bytes") ?? "";
    return /^\d+$/.test(text) && Number(text) < totalBytes ? [Number(text)] : [];
  });
  return limits.length === 0 ? null : Math.min(...limits);
}
