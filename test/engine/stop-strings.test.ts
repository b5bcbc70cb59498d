import assert from "node:assert/strict";
import fc from "fast-check";
import { StopStringMatcher } from "../../src/engine/stop-strings.js";

/** What is shown after each piece, and at the end. */
function show(stop: readonly string[], pieces: readonly string[], include = false): string[] {
  const matcher = new StopStringMatcher(stop, include);
  return [...pieces.map((piece) => matcher.push(piece)), matcher.flush()];
}

describe("stop texts", () => {
  it("let everything pass at once when there are none", () => {
    assert.deepEqual(show([], ["a", "bc"]), ["a", "bc", ""]);
  });

  it("hold back what may be the beginning of one, and show it when it turns out not to be", () => {
    assert.deepEqual(show(["\n\nUser:"], ["Yes.\n", "\nUse", "ful."]), ["Yes.", "", "\n\nUseful.", ""]);
  });

  it("never show one that came in pieces, nor anything after it", () => {
    assert.deepEqual(show(["\n\nUser:"], ["Yes.\n", "\nUser", ": hi", "more"]), ["Yes.", "", "", "", ""]);
  });

  it("are shown when they are to be included, but nothing after them", () => {
    assert.deepEqual(show(["END"], ["the E", "ND of"], true), ["the ", "END", ""]);
  });

  it("show what was held back when the text ends", () => {
    assert.deepEqual(show(["abc"], ["xab"]), ["x", "ab"]);
  });

  it("find one that overlaps a beginning that failed", () => {
    assert.deepEqual(show(["aab"], ["aa", "ab"]), ["", "a", ""]);
    assert.deepEqual(show(["ababc"], ["aba", "babc"]), ["", "ab", ""]);
  });

  it("end the text at the first that is complete, the longest of those that end together", () => {
    assert.deepEqual(show(["abc", "b"], ["abc"]), ["a", ""]);
    assert.deepEqual(show(["c", "abc"], ["xabc"]), ["x", ""]);
  });

  const few = fc.string({ unit: fc.constantFrom("a", "b", "\u{1f600}"), minLength: 1, maxLength: 4 });

  it("give the same text however it is cut into pieces, and as a search that knows it all", () => {
    fc.assert(
      fc.property(
        fc.array(few, { maxLength: 3 }),
        fc.array(few, { maxLength: 12 }),
        fc.boolean(),
        (stop, pieces, include) => {
          assert.equal(show(stop, pieces, include).join(""), searched(stop, pieces.join(""), include));
        },
      ),
      { numRuns: 2000 },
    );
  });

  it("hold back no more than can still become one", () => {
    fc.assert(
      fc.property(fc.array(few, { minLength: 1, maxLength: 3 }), fc.array(few, { maxLength: 12 }), (stop, pieces) => {
        const matcher = new StopStringMatcher(stop, false);
        let seen = "";
        let shown = "";
        for (const piece of pieces) {
          seen += piece;
          shown += matcher.push(piece);
          if (matcher.stopped) return;
          const held = seen.slice(shown.length);
          assert.ok(held === "" || stop.some((text) => text.startsWith(held)), `${held} begins no stop text`);
        }
      }),
      { numRuns: 1000 },
    );
  });

  function searched(stop: readonly string[], text: string, include: boolean): string {
    for (let end = 1; end <= text.length; end++) {
      const found = stop.filter((candidate) => text.slice(0, end).endsWith(candidate)).map(({ length }) => length);
      if (found.length > 0) return text.slice(0, include ? end : end - Math.max(...found));
    }
    return text;
  }
});
