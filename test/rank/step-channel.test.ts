import assert from "node:assert/strict";
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import {
  CoordinatorChannel,
  MAX_STEPS_IN_FLIGHT,
  RankChannel,
  STEP_RUN,
  STEP_STOP,
} from "../../src/rank/step-channel.js";

const LONG_MS = 60_000;

describe("the step channel", () => {
  let channel: CoordinatorChannel;

  afterEach(() => channel.close());

  function ranksOf(worldSize: number): RankChannel[] {
    channel = new CoordinatorChannel(worldSize);
    return Array.from({ length: worldSize }, (_, rank) => new RankChannel(channel.handle, rank, 0));
  }

  it("has a step done when the last rank finished it, in whatever order they do", async () => {
    const ranks = ranksOf(3);
    channel.post(STEP_RUN);
    for (const rank of ranks) assert.equal(rank.waitForStep(), STEP_RUN);
    const done = channel.waitDone(LONG_MS);
    for (const rank of [2, 0, 1]) {
      assert.ok(channel.unfinishedRanks().includes(rank));
      ranks[rank]?.finishStep();
    }
    assert.equal(await done, "done");
    assert.deepEqual(channel.unfinishedRanks(), []);
  });

  it("gives a rank the step that was posted before it began to wait", async () => {
    channel = new CoordinatorChannel(1);
    channel.post(STEP_RUN);
    const rank = new RankChannel(channel.handle, 0, 0);
    assert.equal(rank.waitForStep(), STEP_RUN);
    rank.finishStep();
    assert.equal(await channel.waitDone(LONG_MS), "done");
  });

  it("names the ranks that did not finish when the time is over", async () => {
    const ranks = ranksOf(4);
    channel.post(STEP_RUN);
    for (const rank of ranks) rank.waitForStep();
    ranks[1]?.finishStep();
    ranks[3]?.finishStep();
    assert.equal(await channel.waitDone(20), "timedOut");
    assert.deepEqual(channel.unfinishedRanks(), [0, 2]);
  });

  it("looks for a step that is done before it looks at the clock", async () => {
    const [rank] = ranksOf(1);
    channel.post(STEP_RUN);
    rank?.waitForStep();
    rank?.finishStep();
    assert.equal(await channel.waitDone(0), "done");
  });

  it("ends the wait for a step when a rank fails, and keeps the first rank that did", async () => {
    const ranks = ranksOf(3);
    channel.post(STEP_RUN);
    for (const rank of ranks) rank.waitForStep();
    const done = channel.waitDone(LONG_MS);
    assert.equal(channel.failedRank, null);
    ranks[2]?.fail();
    ranks[0]?.fail();
    assert.equal(await done, "failed");
    assert.equal(channel.failedRank, 2);
  });

  it("ends the wait for a step when the coordinator gives it up, and blames no rank", async () => {
    ranksOf(2);
    channel.post(STEP_RUN);
    const done = channel.waitDone(LONG_MS);
    channel.interrupt();
    assert.equal(await done, "failed");
    assert.equal(channel.failedRank, null);
  });

  it("lets a stop supersede a step that a rank has not begun", () => {
    const [first, second] = ranksOf(2);
    channel.post(STEP_RUN);
    assert.equal(first?.waitForStep(), STEP_RUN);
    channel.post(STEP_STOP);
    assert.equal(second?.waitForStep(), STEP_STOP);
    first?.finishStep();
    assert.equal(first?.waitForStep(), STEP_STOP);
  });

  it("takes as many steps as may be in flight, and refuses one more", () => {
    const [rank] = ranksOf(1);
    for (let step = 0; step < MAX_STEPS_IN_FLIGHT; step++) channel.post(STEP_RUN);
    assert.throws(() => channel.post(STEP_RUN), { code: "INTERNAL" });
    rank?.waitForStep();
    rank?.finishStep();
    channel.post(STEP_RUN);
  });

  it("has steps in flight run and done in their order", async () => {
    const ranks = ranksOf(2);
    const [first, second] = [channel.post(STEP_RUN), channel.post(STEP_RUN)];
    for (const [step, sequence] of [first, second].entries()) {
      for (const rank of ranks) {
        assert.equal(rank.waitForStep(), STEP_RUN);
        assert.equal(rank.step, step);
        assert.ok(channel.unfinishedRanks(sequence).length > 0);
        rank.finishStep();
      }
      assert.equal(await channel.waitDone(LONG_MS, sequence), "done");
      assert.deepEqual(channel.unfinishedRanks(sequence), []);
    }
  });

  it("waits for a later step from then on when it is told to", async () => {
    const [rank] = ranksOf(1);
    const [first, second] = [channel.post(STEP_RUN), channel.post(STEP_RUN)];
    let done = false;
    const wait = channel.waitDone(LONG_MS, first).then((outcome) => {
      done = true;
      return outcome;
    });
    channel.awaitStep(second);
    rank?.waitForStep();
    rank?.finishStep();
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual([done, channel.isDone(first), channel.isDone(second)], [false, true, false]);
    rank?.waitForStep();
    rank?.finishStep();
    assert.equal(await wait, "done");
  });

  it("gives a step its time from when the one before it was done", async () => {
    const ranks = ranksOf(2);
    const [first, second] = [channel.post(STEP_RUN), channel.post(STEP_RUN)];
    const wait = channel.waitDone(20, second);
    for (const rank of ranks) {
      rank.waitForStep();
      rank.finishStep();
    }
    ranks[0]?.waitForStep();
    ranks[0]?.finishStep();
    assert.equal(await wait, "timedOut");
    assert.equal(channel.finished, first);
    assert.deepEqual(channel.unfinishedRanks(second), [1]);
  });

  it("has no rank begin a step before rank 0 has finished the one before", async () => {
    channel = new CoordinatorChannel(2);
    const counts = new Int32Array(new SharedArrayBuffer(8));
    const { handle } = channel;
    const entry = new URL("./step-channel-rank.js", import.meta.url);
    const exit = once(new Worker(entry, { workerData: { handle, rank: 1, spinMs: 0, counts } }), "exit");
    const leader = new RankChannel(handle, 0, 0);
    for (let step = 0; step < 200; step++) {
      channel.post(STEP_RUN);
      if (step === 0) channel.post(STEP_RUN);
      leader.waitForStep();
      assert.ok((counts[1] ?? 0) <= step + 1, `in step ${step} rank 1 has begun ${counts[1]}`);
      leader.finishStep();
      assert.equal(await channel.waitDone(LONG_MS, step + 1), "done");
    }
    channel.post(STEP_STOP);
    assert.deepEqual(await exit, [0]);
  });

  it("carries byte counts beyond 32 bits, each rank its own", () => {
    const ranks = ranksOf(3);
    for (const [i, rank] of ranks.entries()) rank.reportLoaded(2 ** 40 + i);
    assert.deepEqual(
      [0, 1, 2].map((rank) => channel.bytesLoaded(rank)),
      [2 ** 40, 2 ** 40 + 1, 2 ** 40 + 2],
    );
  });

  for (const { worldSize, spinMs } of [
    { worldSize: 1, spinMs: 0 },
    { worldSize: 3, spinMs: 0 },
    { worldSize: 2, spinMs: 0.05 },
    { worldSize: 8, spinMs: 0.01 },
  ]) {
    it(`wakes ${worldSize} thread(s) for every one of 3000 steps, spinning ${spinMs} ms`, async () => {
      channel = new CoordinatorChannel(worldSize);
      const counts = new Int32Array(new SharedArrayBuffer(4 * worldSize));
      const { handle } = channel;
      const entry = new URL("./step-channel-rank.js", import.meta.url);
      const exits = Array.from({ length: worldSize }, (_, rank) =>
        once(new Worker(entry, { workerData: { handle, rank, spinMs, counts } }), "exit"),
      );
      for (let step = 1; step <= 3000; step++) {
        channel.post(STEP_RUN);
        assert.equal(await channel.waitDone(LONG_MS), "done");
        assert.ok(
          counts.every((count) => count === step),
          `step ${step}: ${counts}`,
        );
      }
      channel.post(STEP_STOP);
      assert.ok((await Promise.all(exits)).every(([exitCode]) => exitCode === 0));
    });

    it(`wakes the coordinator for the steps it waits for, with ${worldSize} thread(s) ahead, spinning ${spinMs} ms`, async () => {
      channel = new CoordinatorChannel(worldSize);
      const counts = new Int32Array(new SharedArrayBuffer(4 * worldSize));
      const { handle } = channel;
      const entry = new URL("./step-channel-rank.js", import.meta.url);
      const exits = Array.from({ length: worldSize }, (_, rank) =>
        once(new Worker(entry, { workerData: { handle, rank, spinMs, counts } }), "exit"),
      );
      let posted = 0;
      for (let awaited = 0; awaited < 3000; ) {
        while (posted < awaited + MAX_STEPS_IN_FLIGHT) posted = channel.post(STEP_RUN);
        // Each of the steps in flight in turn, and several at a time.
        awaited += 1 + (awaited % MAX_STEPS_IN_FLIGHT);
        assert.equal(await channel.waitDone(LONG_MS, awaited), "done");
        assert.ok(counts.every((count) => count >= awaited));
      }
      channel.post(STEP_STOP);
      assert.ok((await Promise.all(exits)).every(([exitCode]) => exitCode === 0));
    });
  }
});
