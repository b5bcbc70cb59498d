import assert from "node:assert/strict";
import { readSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { RandomAccessFile, type StridedRuns } from "../../src/checkpoint/random-access-file.js";
import { readSlice, sliceElements, stridedRuns } from "../../src/checkpoint/slice.js";
import { CheckpointError } from "../../src/core/errors.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import { temporaryFolder } from "./files.js";

/** Reads as any system can: without the addon. */
const plainly: typeof readSync = readSync;
const withoutAddon = (fd: number, out: Uint8Array, offset: number, length: number, position: number): number =>
  plainly(fd, out, offset, length, position);

describe("runs of a file", () => {
  const folder = temporaryFolder();
  const native = nativeAddon();
  const threads = [1, 3];

  const written = (sizeBytes: number): string => {
    const path = join(folder.path, `bytes${sizeBytes}`);
    writeFileSync(
      path,
      Uint8Array.from({ length: sizeBytes }, (_, i) => (i * 31 + (i >> 8)) & 255),
    );
    return path;
  };
  const readWith = (file: RandomAccessFile, runs: StridedRuns): Uint8Array => {
    const bytes = new Uint8Array(runs.runBytes * runs.runs);
    file.readRuns(bytes, runs);
    return bytes;
  };
  afterEach(() => {
    if (native.loaded) native.addon.setThreads(1, 0, 0);
  });

  it("property: are those that reads one by one would give, on one thread and on several", () => {
    const sizeBytes = 3_000_000;
    const path = written(sizeBytes);
    const [fast, plain] = [RandomAccessFile.open(path), RandomAccessFile.open(path, undefined, withoutAddon)];
    const request = fc
      .record({
        runBytes: fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 900_000, max: 1_200_000 })),
        gap: fc.nat(3000),
        runs: fc.integer({ min: 1, max: 200 }),
        position: fc.nat(5000),
      })
      .map(({ runBytes, gap, runs, position }): StridedRuns => {
        const stride = runBytes + gap;
        return {
          position,
          runBytes,
          stride,
          runs: Math.max(1, Math.min(runs, Math.floor((sizeBytes - position) / stride))),
        };
      });
    const property = fc.property(request, fc.constantFrom(...threads), (runs, count) => {
      if (native.loaded) native.addon.setThreads(count, 0, 0);
      assert.ok(Buffer.from(readWith(fast, runs)).equals(readWith(plain, runs)));
    });
    fc.assert(property, { numRuns: 60 });
    fast.close();
    plain.close();
  });

  it("that end behind the file are an error that names the first byte that is not there", () => {
    const path = written(100_000);
    for (const readAt of [undefined, withoutAddon]) {
      const file = RandomAccessFile.open(path, undefined, readAt);
      truncateSync(path, 50_000);
      assert.throws(
        () => readWith(file, { position: 0, runBytes: 1000, stride: 3000, runs: 30 }),
        (error: unknown) => {
          assert.ok(error instanceof CheckpointError);
          assert.equal(error.code, "SHORT_READ");
          // Run 16 begins at 48,000 and is whole; run 17 begins behind the end.
          assert.match(error.message, /expected 1000 bytes at offset 51000 but the file ended after 0$/);
          return true;
        },
      );
      file.close();
      written(100_000);
    }
  });

  it("are all that a long read needs, too", () => {
    const path = written(3_000_000);
    const file = RandomAccessFile.open(path);
    if (native.loaded) native.addon.setThreads(2, 0, 0);
    const [whole, plain] = [new Uint8Array(2_500_001), new Uint8Array(2_500_001)];
    file.read(whole, 17);
    RandomAccessFile.open(path, undefined, withoutAddon).read(plain, 17);
    assert.ok(Buffer.from(whole).equals(plain));
    truncateSync(path, 2_000_000);
    assert.throws(() => file.read(whole, 17), /expected 2500001 bytes at offset 17 but the file ended after 1999983$/);
    file.close();
    assert.throws(() => file.read(whole, 0), /is read after it was closed/);
  });

  it("property: stand for a slice of a tensor of two dimensions, or of one with others around it", () => {
    const shape = fc.tuple(
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 9 }),
    );
    const cut = fc.tuple(fc.nat(8), fc.nat(8));
    const property = fc.property(shape, fc.tuple(cut, cut, cut), (extents, cuts) => {
      const ranges = extents.map((extent, i) => {
        const [a = 0, b = 0] = cuts[i] ?? [];
        const [start, end] = [Math.min(a, b) % extent, (Math.max(a, b) % extent) + 1];
        return { start: Math.min(start, end - 1), end };
      });
      const elements = extents.reduce((product, extent) => product * extent, 1);
      const source = Uint8Array.from({ length: elements }, (_, i) => i & 255);
      const tensor = {
        name: "t",
        dtype: "u8" as const,
        shape: extents,
        file: "memory",
        read: (out: Uint8Array, offset: number) => out.set(source.subarray(offset, offset + out.length)),
      };
      const expected = new Uint8Array(sliceElements(ranges));
      readSlice(tensor, ranges, expected);
      const strided = stridedRuns(extents, 1, ranges);
      if (strided === null) {
        // Runs at two distances: more than one index in two dimensions, beside those inside a run.
        assert.ok(ranges.filter(({ start, end }) => end - start > 1).length > 1);
        return;
      }
      const { offset, runBytes, stride, runs } = strided;
      const received = Array.from({ length: runs }, (_, run) => [
        ...source.subarray(offset + run * stride, offset + run * stride + runBytes),
      ]).flat();
      assert.deepEqual(received, [...expected]);
    });
    fc.assert(property, { numRuns: 300 });
  });
});
