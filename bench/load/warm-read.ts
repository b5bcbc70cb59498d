/** What reading a file that is in the page cache can cost at least: the limits of loading. */
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { RandomAccessFile } from "../../src/checkpoint/random-access-file.js";
import { Arena } from "../../src/core/arena.js";
import { nativeAddon } from "../../src/core/native-addon.js";

/** GB/s with one thread a CPU. */
export interface WarmRead {
  /** Into memory that was written before. */
  readonly touchedGBs: number;
  /** Into memory that the system has to provide page by page. */
  readonly freshGBs: number;
  /** The difference: milliseconds a GB of the first touch, which no loader can do without. */
  readonly touchMsPerGB: number;
}

/** Bytes read at a time: more than any cache holds, also those of large servers. */
const PART_BYTES = 1024 * 2 ** 20;
const PASSES = 3;

/** Reads a file into the page cache. */
export function warm(path: string): void {
  const fd = openSync(path, "r");
  const buffer = new Uint8Array(8 * 2 ** 20);
  while (readSync(fd, buffer, 0, buffer.length, null) > 0);
  closeSync(fd);
}

/** Null where the addon, which reads on several threads, is not there. The file must be warm. */
export function measureWarmRead(path: string): WarmRead | null {
  const native = nativeAddon();
  if (!native.loaded) return null;
  const sizeBytes = Math.min(PART_BYTES, statSync(path).size);
  const file = RandomAccessFile.open(path);
  native.addon.setThreads(availableParallelism(), 50, 0);
  try {
    const destination = (): Uint8Array => {
      const arena = Arena.create("warm read", sizeBytes);
      return new Uint8Array(arena.buffer, arena.base, sizeBytes);
    };
    const rate = (bytes: Uint8Array): number => {
      const start = performance.now();
      file.read(bytes, 0);
      return sizeBytes / (performance.now() - start) / 1e6;
    };
    const touched = destination();
    const fresh = Array.from({ length: PASSES }, () => rate(destination()));
    const again = Array.from({ length: PASSES + 1 }, () => rate(touched));
    const [touchedGBs, freshGBs] = [Math.max(...again.slice(1)), Math.max(...fresh)];
    return { touchedGBs, freshGBs, touchMsPerGB: Math.max(0, 1000 / freshGBs - 1000 / touchedGBs) };
  } finally {
    native.addon.setThreads(1, 0, 0);
    file.close();
  }
}
