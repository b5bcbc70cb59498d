/** Files that must not change while they are read: whatever happens to one is found, and so are readers of two versions. */
import assert from "node:assert/strict";
import { appendFileSync, renameSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkSameVersions } from "../../src/checkpoint/open-file.js";
import { RandomAccessFile } from "../../src/checkpoint/random-access-file.js";
import { checkpointError, temporaryFolder } from "./files.js";

describe("an open file", () => {
  const folder = temporaryFolder();
  const changes: readonly (readonly [string, (path: string) => void, RegExp])[] = [
    ["becomes longer", (path) => appendFileSync(path, "x"), /written to/],
    ["becomes shorter", (path) => truncateSync(path, 3), /written to/],
    ["gets other bytes", (path) => writeFileSync(path, "other"), /written to/],
    ["is written to with the same bytes", (path) => utimesSync(path, 1, 1), /written to/],
    ["is replaced by its twin", (path) => renameSync(`${path}.twin`, path), /another one took its place/],
    ["is removed", (path) => rmSync(path), /it was removed/],
  ];
  for (const [what, change, reason] of changes) {
    it(`that ${what} is found to have changed`, () => {
      const path = folder.write("file", "bytes");
      folder.write("file.twin", "bytes");
      const file = RandomAccessFile.open(path);
      try {
        file.checkUnchanged();
        change(path);
        assert.throws(() => file.checkUnchanged(), checkpointError("FILE_CHANGED", reason));
      } finally {
        file.close();
      }
    });
  }

  it("is the same for all who open it, and another one for whoever opens what took its place", () => {
    const path = folder.write("file", "bytes");
    const open = (name: string): { name: string; files: RandomAccessFile[] } => {
      return { name, files: [RandomAccessFile.open(path)] };
    };
    const readers = [open("rank 0"), open("rank 1")];
    checkSameVersions(readers);
    renameSync(folder.write("other", "bytes"), join(folder.path, "file"));
    readers.push(open("rank 2"));
    const expected = checkpointError("FILE_CHANGED", /rank 2 opened another one than rank 0/);
    assert.throws(() => checkSameVersions(readers), expected);
    for (const { files } of readers) for (const file of files) file.close();
  });
});
