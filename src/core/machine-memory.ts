/** How much memory there is for this process, and in which pages. */
import { freemem, totalmem } from "node:os";
import { cgroupFolders, fieldOf, systemNames, systemText } from "./system-files.js";

/** Plain data. */
export interface MachineMemory {
  readonly totalBytes: number;
  /** What can be had without swapping, at the moment. */
  readonly availableBytes: number;
  /** What the control group of this process may use altogether; null for no limit. */
  readonly limitBytes: number | null;
  /** What each NUMA node has, by id; none where the system tells of no nodes. A node may have CPUs and no memory. */
  readonly nodes: readonly { readonly id: number; readonly totalBytes: number }[];
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
    nodes: readNodes(root),
    hugePages: /\[(\w+)\]/.exec(modes ?? "")?.[1] ?? null,
  };
}

/** What this process may use altogether. */
export function usableBytes({ totalBytes, limitBytes }: MachineMemory): number {
  return limitBytes ?? totalBytes;
}

function readNodes(root: string): MachineMemory["nodes"] {
  const nodes = systemNames(root, "sys/devices/system/node").flatMap((name) => {
    const [, id] = /^node(\d+)$/.exec(name) ?? [];
    const table = systemText(root, "sys/devices/system/node", name, "meminfo");
    const [, kilobytes] = /^Node \d+ MemTotal: +(\d+) kB$/m.exec(table ?? "") ?? [];
    return id === undefined || kilobytes === undefined
      ? []
      : [{ id: Number(id), totalBytes: Number(kilobytes) * 1024 }];
  });
  return nodes.sort((a, b) => a.id - b.id);
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
