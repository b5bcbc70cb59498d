import assert from "node:assert/strict";
import { readSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { type BlockLayout, type BlockRuns, codeBytes } from "../../src/checkpoint/block-layout.js";
import { RandomAccessFile } from "../../src/checkpoint/random-access-file.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import { temporaryFolder } from "./files.js";

/** Reads as any system can: without the addon. */
const withoutAddon = (fd: number, out: Uint8Array, offset: number, length: number, position: number): number =>
  readSync(fd, out, offset, length, position);

/** ggml's Q4_0: a binary16 scale, then 16 bytes of 4-bit codes. */
const Q4_0: BlockLayout = {
  blockBytes: 18,
  codesOffset: 2,
  groups: 1,
  groupBytes: 16,
  codeBits: 4,
  headerOffset: 0,
  headerBytes: 2,
};

describe("blocks of a file", () => {
  const folder = temporaryFolder();
  const native = nativeAddon();
  const sizeBytes = 400_000;
  const path = (): string => join(folder.path, "blocks");
  beforeEach(() =>
    writeFileSync(
      path(),
      Uint8Array.from({ length: sizeBytes }, (_, i) => (i * 37 + (i >> 7)) & 255),
    ),
  );
  afterEach(() => {
    if (native.loaded) native.addon.setThreads(1, 0, 0);
  });

  const read = (file: RandomAccessFile, layout: BlockLayout, runs: BlockRuns) => {
    const count = runs.blocks * runs.runs;
    const codes = new Uint8Array(count * codeBytes(layout));
    const headers = new Uint8Array(count * layout.headerBytes);
    file.readBlocks(layout, runs, { codes, headers });
    return { codes: [...codes], headers: [...headers] };
  };

  it("come apart into the neighbours that halves of bytes were, and the bytes before them", () => {
    const block = Uint8Array.from([0xaa, 0xbb, ...Array.from({ length: 16 }, (_, i) => i | ((15 - i) << 4))]);
    writeFileSync(path(), block);
    for (const readAt of [undefined, withoutAddon]) {
      const file = RandomAccessFile.open(path(), undefined, readAt);
      const { codes, headers } = read(file, Q4_0, { position: 0, blocks: 1, stride: 0, runs: 1 });
      // Elements 0..15 are 0..15, elements 16..31 are 15..0.
      assert.deepEqual(
        codes,
        [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10],
      );
      assert.deepEqual(headers, [0xaa, 0xbb]);
      file.close();
    }
  });

  it("property: of any layout, in any runs, are the same with the addon, on one thread and on several", () => {
    const [fast, plain] = [RandomAccessFile.open(path()), RandomAccessFile.open(path(), undefined, withoutAddon)];
    const layout = fc
      .record({
        codesOffset: fc.nat(20),
        groups: fc.integer({ min: 1, max: 5 }),
        halfGroup: fc.integer({ min: 1, max: 20 }),
        codeBits: fc.constantFrom(4, 8),
        spare: fc.nat(9),
        header: fc.nat(16),
      })
      .map(({ codesOffset, groups, halfGroup, codeBits, spare, header }): BlockLayout => {
        const groupBytes = 2 * halfGroup;
        const blockBytes = Math.max(codesOffset + groups * groupBytes + spare, header);
        return {
          blockBytes,
          codesOffset,
          groups,
          groupBytes,
          codeBits: codeBits === 4 ? 4 : 8,
          headerOffset: blockBytes - header,
          headerBytes: header,
        };
      });
    const property = fc.property(
      layout,
      fc.integer({ min: 1, max: 300 }),
      fc.integer({ min: 1, max: 40 }),
      fc.nat(100),
      fc.constantFrom(1, 3),
      (blocks, count, runs, position, threads) => {
        const perRun = Math.max(1, Math.min(count, Math.floor((sizeBytes - position) / runs / blocks.blockBytes) - 1));
        const stride = (perRun + 1) * blocks.blockBytes;
        if (native.loaded) native.addon.setThreads(threads, 0, 0);
        const request = { position, blocks: perRun, stride, runs };
        assert.deepEqual(read(fast, blocks, request), read(plain, blocks, request));
      },
    );
    fc.assert(property, { numRuns: 60 });
    fast.close();
    plain.close();
  });

  it("property: of whole rows, go to groups of rows as rows that were read would, with the addon, on one thread and on several", () => {
    const [fast, plain] = [RandomAccessFile.open(path()), RandomAccessFile.open(path(), undefined, withoutAddon)];
    const small = (headerBytes: number, groupBytes: number, codeBits: 4 | 8): BlockLayout => {
      return {
        ...Q4_0,
        blockBytes: headerBytes + groupBytes,
        codesOffset: headerBytes,
        groupBytes,
        codeBits,
        headerBytes,
      };
    };
    const late: BlockLayout = { ...Q4_0, blockBytes: 53, codesOffset: 3, groups: 3, groupBytes: 12, headerOffset: 40 };
    const property = fc.property(
      fc.constantFrom(Q4_0, small(4, 16, 4), small(2, 32, 8), late, { ...late, codeBits: 8 }),
      fc.oneof(fc.integer({ min: 1, max: 6 }), fc.constantFrom(300, 900)),
      fc.integer({ min: 1, max: 70 }),
      fc.nat(40),
      fc.nat(40),
      fc.boolean(),
      fc.constantFrom(1, 3),
      (layout, rowBlocks, wanted, firstRow, after, strided, threads) => {
        const fileRowBytes = rowBlocks * layout.blockBytes;
        const rows = Math.max(1, Math.min(wanted, Math.floor(sizeBytes / fileRowBytes / 2) - 1));
        const rowBytes = rowBlocks * codeBytes(layout);
        const together = { position: 7, blocks: rowBlocks * rows, stride: 0, runs: 1 };
        const apart = { position: 7, blocks: rowBlocks, stride: 2 * fileRowBytes, runs: rows };
        const into = (file: RandomAccessFile) => {
          const matrix = new Uint8Array((firstRow + rows + after) * rowBytes).fill(0xa5);
          const headers = new Uint8Array(rows * rowBlocks * layout.headerBytes);
          const groups = { matrix, rowBytes, codeBits: layout.codeBits };
          file.readBlockGroups(layout, strided ? apart : together, { groups, firstRow, rowBlocks, headers });
          return { matrix: Buffer.from(matrix), headers: Buffer.from(headers) };
        };
        if (native.loaded) native.addon.setThreads(threads, 0, 0);
        const [received, expected] = [into(fast), into(plain)];
        assert.ok(received.matrix.equals(expected.matrix), "codes");
        assert.ok(received.headers.equals(expected.headers), "headers");
      },
    );
    fc.assert(property, { numRuns: 150 });
    fast.close();
    plain.close();
  });

  it("that the file does not have are an error that says where it ends, in groups of rows too", () => {
    for (const readAt of [undefined, withoutAddon]) {
      const file = RandomAccessFile.open(path(), undefined, readAt);
      truncateSync(path(), 1000);
      const groups = { matrix: new Uint8Array(32 * 640), rowBytes: 640, codeBits: 4 } as const;
      const to = { groups, firstRow: 0, rowBlocks: 40, headers: new Uint8Array(20 * 80) };
      assert.throws(() => file.readBlockGroups(Q4_0, { position: 0, blocks: 800, stride: 0, runs: 1 }, to), {
        code: "SHORT_READ",
        message: /expected 14400 bytes at offset 0 but the file ended after 1000$/,
      });
      file.close();
      writeFileSync(path(), new Uint8Array(sizeBytes));
    }
  });

  it("that the file does not have are an error that says where it ends", () => {
    for (const readAt of [undefined, withoutAddon]) {
      const file = RandomAccessFile.open(path(), undefined, readAt);
      truncateSync(path(), 1000);
      assert.throws(() => read(file, Q4_0, { position: 0, blocks: 40, stride: 900, runs: 3 }), {
        code: "SHORT_READ",
        message: /expected 720 bytes at offset 900 but the file ended after 100$/,
      });
      file.close();
      writeFileSync(path(), new Uint8Array(sizeBytes));
    }
  });
});
