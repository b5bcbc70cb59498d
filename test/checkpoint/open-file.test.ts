/** Files that must not change while they are read: whatever happens to one is found, and so are readers of two versions. */
import assert from "node:assert/strict";
import { appendFileSync, renameSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkNowAndThen, checkSameVersions } from "../../src/checkpoint/open-file.js";
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

  it("is checked now and then while it is read, less often where the system takes long to say", () => {
    let clock = 0;
    let checks = 0;
    let answerMs = 0;
    const checkUnchanged = (): void => {
      checks++;
      clock += answerMs;
    };
    const check = checkNowAndThen([{ path: "file", version: "1", checkUnchanged }], () => clock);
    const checksFrom = (start: number, end: number): number => {
      const before = checks;
      for (clock = start; clock < end; clock += 10) check();
      return checks - before;
    };
    assert.equal(checksFrom(0, 250), 0);
    const quick = checksFrom(250, 1250);
    assert.ok(quick >= 3 && quick <= 4, `${quick} checks in a second`);
    answerMs = 1000;
    const slow = checksFrom(1250, 101_250);
    assert.ok(slow >= 1 && slow <= 2, `${slow} checks of a second each in 100 s`);
  });

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
