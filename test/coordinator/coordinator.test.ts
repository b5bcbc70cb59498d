import assert from "node:assert/strict";
import type { Coordinator } from "../../src/coordinator/coordinator.js";
import { CheckpointError, InternalError, OptionError, RankError, RequestError } from "../../src/core/errors.js";
import type { Executor } from "../../src/engine/executor.js";
import { type FakeRanksOptions, faultReached, runFakeStep, startFakeRanks } from "./fake-ranks.js";
import { heldResources, type ThreadCount, watchThreads } from "./threads.js";

/** Where a fault can happen: while ranks load, in the first step, in a later one. */
const stages = ["load", 1, 3] as const;

describe("the coordinator", () => {
  let threads: ThreadCount;
  let heldBefore: string[];

  beforeEach(() => {
    heldBefore = heldResources();
    threads = watchThreads();
  });

  afterEach(() => {
    threads.stop();
    assert.equal(threads.alive, 0, "threads are left behind");
    assert.deepEqual(heldResources(), heldBefore, "handles are left behind");
  });

  /** Starts ranks and runs steps until something fails; returns what it failed with, after everything has ended. */
  async function failureOf(options: FakeRanksOptions): Promise<unknown> {
    let coordinator: Coordinator | undefined;
    try {
      coordinator = await startFakeRanks(options);
      for (let step = 1; ; step++) await runFakeStep(coordinator, step);
    } catch (error) {
      await coordinator?.close();
      return error;
    }
  }

  for (const worldSize of [1, 2, 3, 6]) {
    it(`runs steps on ${worldSize} thread(s), every one of them seen by every rank, and ends them`, async () => {
      const coordinator = await startFakeRanks({ worldSize });
      const executor: Executor = coordinator;
      assert.equal(executor.worldSize, worldSize);
      assert.equal(threads.alive, worldSize);
      assert.deepEqual(
        coordinator.reports.map((report) => report.rank),
        Array.from({ length: worldSize }, (_, rank) => rank),
      );
      for (let step = 1; step <= 50; step++) assert.equal(await runFakeStep(coordinator, step), 2 * step);
      await coordinator.close();
      assert.equal(threads.started, worldSize);
    });
  }

  it("loses no wake-up in thousands of steps, whether they follow at once or after a pause", async () => {
    const coordinator = await startFakeRanks({ worldSize: 3 });
    for (let step = 1; step <= 5000; step++) {
      // A pause lets the ranks get past spinning, to every point of their way to sleep.
      if (step % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(await runFakeStep(coordinator, step), 2 * step);
    }
    await coordinator.close();
  });

  it("reports how many bytes each rank has read, beyond 32 bits", async () => {
    const bytes = new Map<number, number>();
    const coordinator = await startFakeRanks({
      worldSize: 2,
      onProgress: (progress) => bytes.set(progress.rank, progress.bytes),
    });
    await coordinator.close();
    assert.deepEqual(Object.fromEntries(bytes), { 0: 2 ** 33, 1: 2 ** 33 + 1 });
  });

  it("starts no ranks that have opened different versions of a file", async () => {
    const error = await failureOf({ worldSize: 3, faults: [{ rank: 2, at: "load", what: "another-file" }] });
    assert.ok(error instanceof CheckpointError, String(error));
    assert.deepEqual([error.code, error.details.file], ["FILE_CHANGED", "model.safetensors"]);
    assert.match(error.message, /rank 2 opened another one than rank 0/);
  });

  for (const at of stages) {
    const when = at === "load" ? "while loading" : `in step ${at}`;

    it(`keeps code, fields, message and stack of an error thrown by one rank of three ${when}`, async () => {
      const error = await failureOf({ worldSize: 3, faults: [{ rank: 1, at, what: "throw" }] });
      assert.ok(error instanceof CheckpointError, String(error));
      assert.equal(error.code, "BROKEN_SHARD");
      assert.equal(error.message, "rank 1: expected 2 shards but received 3");
      assert.deepEqual(error.details, {
        rank: 1,
        tensor: "model.norm.weight",
        expected: 2,
        received: 3,
        truncated: true,
      });
      assert.match(error.stack ?? "", /fake-rank\.js/);
    });

    it(`names the rank that threw something that is no error of ours ${when}`, async () => {
      const error = await failureOf({ worldSize: 3, faults: [{ rank: 2, at, what: "throw-plain" }] });
      assert.ok(error instanceof InternalError, String(error));
      assert.equal(error.message, "weights is not iterable");
      assert.equal(error.details.rank, 2);
    });

    it(`names the rank and the exit code when a thread ends by itself ${when}`, async () => {
      const error = await failureOf({ worldSize: 3, faults: [{ rank: 1, at, what: "exit" }] });
      assert.ok(error instanceof RankError, String(error));
      assert.equal(error.code, "RANK_EXITED");
      assert.deepEqual(error.details, { rank: 1, exitCode: 7 });
    });
  }

  it("names the rank and the reason when nobody catches an exception in its thread", async () => {
    const error = await failureOf({ worldSize: 3, faults: [{ rank: 0, at: "load", what: "uncaught" }] });
    assert.ok(error instanceof RankError, String(error));
    assert.equal(error.code, "RANK_EXITED");
    assert.deepEqual(error.details, { rank: 0, exitCode: 1 });
    assert.match(error.message, /nobody catches this/);
  });

  it("rejects with a typed error when the file of the thread cannot be loaded", async () => {
    const error = await failureOf({ thread: { url: new URL("./no-such-file.js", import.meta.url) } });
    assert.ok(error instanceof RankError, String(error));
    assert.equal(error.code, "RANK_EXITED");
    assert.match(error.message, /no-such-file/);
  });

  it("rejects with a typed error when a thread cannot be started at all", async () => {
    const error = await failureOf({ thread: { url: new URL("https://example.invalid/rank.js") } });
    assert.ok(error instanceof RankError, String(error));
    assert.equal(error.code, "RANK_START_FAILED");
    assert.equal(error.details.rank, 0);
  });

  it("gives up on ranks that get no further while loading, and names them", async () => {
    const error = await failureOf({
      worldSize: 3,
      faults: [{ rank: 1, at: "load", what: "hang" }],
      timeouts: { startTimeoutMs: 1500 },
    });
    assert.ok(error instanceof RankError, String(error));
    assert.equal(error.code, "RANK_TIMEOUT");
    assert.deepEqual(error.details, { rank: 1, ranks: "1", expected: 1500 });
  });

  it("gives up on a rank that hangs in a step, by the deadline of the step", async () => {
    const error = await failureOf({
      worldSize: 1,
      faults: [{ rank: 0, at: 2, what: "hang" }],
      timeouts: { stepTimeoutMs: 300 },
    });
    assert.ok(error instanceof RankError, String(error));
    assert.equal(error.code, "RANK_TIMEOUT");
    assert.deepEqual(error.details, { rank: 0, ranks: "0", expected: 300 });
  });

  it("gives up on a rank that hangs in a step, by the deadline of the collective, which names it", async () => {
    const error = await failureOf({
      worldSize: 3,
      faults: [{ rank: 2, at: 2, what: "hang" }],
      timeouts: { collectiveTimeoutMs: 300 },
    });
    assert.ok(error instanceof Error && "code" in error && "details" in error, String(error));
    assert.equal(error.code, "COLLECTIVE_TIMEOUT");
    assert.match(error.message, /rank 2 did not arrive/);
  });

  it("prefers the error that caused the others", async () => {
    // Rank 2 throws; ranks 0 and 1 fail in their collectives because of it, maybe before rank 2 is heard.
    for (let round = 0; round < 5; round++) {
      const error = await failureOf({ worldSize: 3, faults: [{ rank: 2, at: 1, what: "throw" }] });
      assert.ok(error instanceof CheckpointError, String(error));
    }
  });

  it("rejects every call after a failure with the same error", async () => {
    const coordinator = await startFakeRanks({ faults: [{ rank: 1, at: 1, what: "throw" }] });
    const first = await runFakeStep(coordinator, 1).catch((error: unknown) => error);
    const second = await coordinator.execute().catch((error: unknown) => error);
    assert.ok(first instanceof CheckpointError);
    assert.equal(second, first);
    await coordinator.close();
  });

  it("ends all threads after a failure even if nobody calls close", async () => {
    const coordinator = await startFakeRanks({ worldSize: 3, faults: [{ rank: 0, at: 1, what: "throw" }] });
    await assert.rejects(runFakeStep(coordinator, 1), { code: "BROKEN_SHARD" });
    while (threads.alive > 0) await new Promise((resolve) => setImmediate(resolve));
  });

  it("refuses a second step while one is in flight", async () => {
    const coordinator = await startFakeRanks();
    const first = runFakeStep(coordinator, 1);
    await assert.rejects(coordinator.execute(), { code: "INTERNAL" });
    assert.equal(await first, 2);
    await coordinator.close();
  });

  it("runs as many steps at a time as there are arrays, and has them done in their order", async () => {
    const coordinator = await startFakeRanks({ stepsInFlight: 4 });
    const order: number[] = [];
    for (let first = 1; first < 40; first += 4) {
      const steps = [0, 1, 2, 3].map((i) => first + i);
      const results = steps.map(async (step) => {
        assert.equal(await runFakeStep(coordinator, step), 2 * step);
        order.push(step);
      });
      await Promise.all(results);
    }
    assert.deepEqual(
      order,
      Array.from({ length: 40 }, (_, i) => i + 1),
    );
    await coordinator.close();
  });

  it("rejects all steps in flight with the error of the first that fails", async () => {
    const coordinator = await startFakeRanks({ stepsInFlight: 4, faults: [{ rank: 1, at: 2, what: "throw" }] });
    const outcomes = await Promise.allSettled([1, 2, 3, 4].map((step) => runFakeStep(coordinator, step)));
    assert.deepEqual(
      outcomes.map(({ status }) => status),
      ["fulfilled", "rejected", "rejected", "rejected"],
    );
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") assert.ok(outcome.reason instanceof CheckpointError, String(outcome.reason));
    }
    await coordinator.close();
  });

  it("closes once however often it is told to, and then refuses steps", async () => {
    const coordinator = await startFakeRanks();
    await Promise.all([coordinator.close(), coordinator.close()]);
    await coordinator.close();
    await assert.rejects(coordinator.execute(), { name: "RankError", code: "RANKS_CLOSED" });
  });

  it("gives up a step in flight when it is closed, also when a rank hangs in it", async () => {
    const coordinator = await startFakeRanks({
      worldSize: 3,
      faults: [{ rank: 1, at: 1, what: "hang" }],
      timeouts: { closeTimeoutMs: 500 },
    });
    const step = runFakeStep(coordinator, 1);
    await faultReached(coordinator);
    await Promise.all([assert.rejects(step, { code: "RANKS_CLOSED" }), coordinator.close()]);
  });

  it("says which rank could not be ended because it is in native code", async () => {
    const coordinator = await startFakeRanks({
      faults: [{ rank: 1, at: 1, what: "stuck" }],
      timeouts: { closeTimeoutMs: 200 },
    });
    const step = runFakeStep(coordinator, 1);
    await faultReached(coordinator);
    await Promise.all([
      assert.rejects(step, { code: "RANKS_CLOSED" }),
      assert.rejects(coordinator.close(), { name: "RankError", code: "RANK_NOT_STOPPED" }),
    ]);
    // It does end, once the native code returns.
    while (threads.alive > 0) await new Promise((resolve) => setTimeout(resolve, 20));
  });

  it("ends ranks that are starting when the signal is aborted", async () => {
    const controller = new AbortController();
    const starting = startFakeRanks({
      worldSize: 3,
      faults: [{ rank: 1, at: "load", what: "hang" }],
      signal: controller.signal,
      onProgress: () => controller.abort(),
    });
    await assert.rejects(starting, (error) => error instanceof RequestError && error.code === "CANCELLED");
  });

  it("starts nothing when the signal is aborted already", async () => {
    const starting = startFakeRanks({ signal: AbortSignal.abort() });
    await assert.rejects(starting, (error) => error instanceof RequestError && error.code === "CANCELLED");
    assert.equal(threads.started, 0);
  });

  it("refuses world sizes and time-outs that make no sense before it starts a thread", async () => {
    await assert.rejects(startFakeRanks({ worldSize: 0 }), (error) => error instanceof OptionError);
    await assert.rejects(startFakeRanks({ timeouts: { stepTimeoutMs: 0 } }), {
      name: "OptionError",
      code: "INVALID_TIMEOUT",
    });
    assert.equal(threads.started, 0);
  });
});
