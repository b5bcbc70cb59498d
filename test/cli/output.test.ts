import assert from "node:assert/strict";
import { Output, type OutputStream } from "../../src/cli/output.js";
import { oneLine, printable } from "../../src/cli/terminal-text.js";
import { ShardloomError } from "../../src/core/errors.js";

/** A stream that keeps what it is given, or fails with an error of `failure`'s code. */
function streamOf(options: { readonly isTTY?: boolean; readonly failure?: string }): OutputStream & { text: string } {
  return {
    text: "",
    isTTY: options.isTTY ?? false,
    on: () => {},
    write(text, done) {
      this.text += text;
      const { failure } = options;
      done(failure === undefined ? null : Object.assign(new Error(`write ${failure}`), { code: failure }));
      return true;
    },
  };
}

describe("results on stdout", () => {
  it("reach a pipe byte for byte, and a terminal without the control characters that it would obey", async () => {
    const pipe = streamOf({});
    const terminal = streamOf({ isTTY: true });
    const text = "a\tb\n\u001b]0;title\u0007\u009b31m\rc\u007f";
    for (const stream of [pipe, terminal]) await new Output(stream, () => {}).write(text);
    assert.equal(pipe.text, text);
    assert.equal(terminal.text, "a\tb\n\\u001b]0;title\\u0007\\u009b31m\\u000dc\\u007f");
  });

  it("end their last line once", async () => {
    const stream = streamOf({});
    const output = new Output(stream, () => {});
    await output.endLine();
    await output.write("text");
    await output.endLine();
    await output.endLine();
    assert.equal(stream.text, "text\n");
  });

  it("stop, with one notice, when their reader has gone", async () => {
    const stream = streamOf({ failure: "EPIPE" });
    let notices = 0;
    const output = new Output(stream, () => notices++);
    await output.write("one");
    await output.write("two");
    assert.equal(notices, 1);
    assert.equal(stream.text, "one");
  });

  it("are an error when they cannot be written: a full disk is not success", async () => {
    const output = new Output(streamOf({ failure: "ENOSPC" }), () => assert.fail("its reader has not gone"));
    await assert.rejects(
      output.write("one"),
      (error) => error instanceof ShardloomError && error.code === "OUTPUT_FAILED" && /ENOSPC/.test(error.message),
    );
  });
});

describe("text of others on a terminal", () => {
  it("keeps letters of all scripts, tabs and line ends", () => {
    const text = "Grüße, 世界 🌍\n\t\u00a0";
    assert.equal(printable(text), text);
  });

  it("is one line of bounded length in an error", () => {
    assert.equal(oneLine("first\r\n\n  second\u001b[0m "), "first second\\u001b[0m");
    assert.equal(oneLine("x".repeat(10_000)).length, 2003);
  });
});
