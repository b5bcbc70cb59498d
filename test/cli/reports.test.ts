import assert from "node:assert/strict";
import { CommanderError } from "commander";
import { Answer } from "../../src/cli/answer.js";
import { formatBytes, formatMs, formatNumber } from "../../src/cli/quantities.js";
import { reportError } from "../../src/cli/report-error.js";
import {
  CheckpointError,
  CollectiveError,
  InternalError,
  OptionError,
  PartitionError,
  PluginError,
  RankError,
  RequestError,
  ShardloomError,
  UnsupportedError,
} from "../../src/core/errors.js";

describe("an error on the command line", () => {
  for (const [error, exitCode] of [
    [new OptionError("A", "m"), 2],
    [new RequestError("A", "m"), 2],
    [new CheckpointError("A", "m"), 3],
    [new UnsupportedError("A", "m"), 3],
    [new PartitionError("A", "m"), 3],
    [new PluginError("A", "m"), 4],
    [new RankError("A", "m"), 5],
    [new CollectiveError("A", "m"), 5],
    [new ShardloomError("OUT_OF_MEMORY", "m"), 5],
    [new InternalError("m"), 1],
    [new TypeError("m"), 1],
  ] as const) {
    it(`${error.name} ends with exit code ${exitCode}`, () => {
      assert.equal(reportError(error, false).exitCode, exitCode);
    });
  }

  it("is one line with its code", () => {
    const error = new CheckpointError("SHORT_READ", "model.safetensors: expected 5 bytes\nbut received 3");
    assert.equal(
      reportError(error, false).text,
      "shardloom: error[SHORT_READ]: model.safetensors: expected 5 bytes but received 3\n",
    );
    assert.equal(reportError(new TypeError("no function"), false).text, "shardloom: error[INTERNAL]: no function\n");
    assert.equal(reportError("thrown text", false).text, "shardloom: error[INTERNAL]: thrown text\n");
  });

  it("shows its stack and its causes only when asked to", () => {
    const error = new CheckpointError("READ_FAILED", "cannot read", {}, { cause: new Error("the disk is gone") });
    assert.doesNotMatch(reportError(error, false).text, /disk|reports\.test/);
    assert.match(reportError(error, true).text, /reports\.test[\s\S]*the disk is gone/);
  });

  it("calls an option of the API by its flag", () => {
    const message = "expected promptTokenIds[3] to be a token id from 0 to 9 but received 10 of type number";
    const error = new OptionError("INVALID_TOKEN_ID", message, { option: "promptTokenIds[3]" });
    assert.match(reportError(error, false).text, /: expected --prompt-ids\[3\] to be/);
  });

  it("keeps commander's suggestion on the line", () => {
    const error = new CommanderError(1, "commander.unknownOption", "error: unknown option '--x'\n(Did you mean --y?)");
    assert.deepEqual(reportError(error, false), {
      exitCode: 2,
      text: "shardloom: error[INVALID_USAGE]: unknown option '--x' (Did you mean --y?)\n",
    });
  });
});

describe("quantities for people", () => {
  it("have three significant digits and the unit that suits them", () => {
    assert.deepEqual([0, 999, 1000, 98_362_432, 1.25e12].map(formatBytes), [
      "0 B",
      "999 B",
      "1 kB",
      "98.4 MB",
      "1.25 TB",
    ]);
    assert.deepEqual([0.05, 9.996, 24.123, 999.4, 999.6, 61_234].map(formatMs), [
      "0.05 ms",
      "10.0 ms",
      "24.1 ms",
      "999 ms",
      "1.00 s",
      "61.2 s",
    ]);
    assert.equal(formatNumber(99.96), "100");
  });
});

describe("an answer put together from its deltas", () => {
  it("has every token, text and log-probability once, and the facts of first and last delta", () => {
    const answer = new Answer();
    const top = [{ id: 7, logprob: -0.5 }];
    answer.add({ text: "a", tokenIds: [7], logprobs: [{ id: 7, logprob: -0.5, top }], finishReason: null, seed: 3 });
    answer.add({ text: "", tokenIds: [], logprobs: [], finishReason: null, promptTokenIds: [1, 2] });
    const timings = { ttftMs: 1, tpotMs: 2, totalMs: 3 };
    answer.add({
      text: "bc",
      tokenIds: [8, 9],
      logprobs: [
        { id: 8, logprob: -4, top },
        { id: 9, logprob: -5, top: [] },
      ],
      finishReason: "stop",
      timings,
    });
    assert.equal(answer.text, "abc");
    assert.deepEqual(answer.tokenIds, [7, 8, 9]);
    assert.deepEqual(answer.logprobs, [top, [...top, { id: 8, logprob: -4 }], [{ id: 9, logprob: -5 }]]);
    assert.deepEqual(
      [answer.promptTokenIds, answer.seed, answer.finishReason, answer.timings],
      [[1, 2], 3, "stop", timings],
    );
  });
});
