import assert from "node:assert/strict";
import { profileSince, readStepProfile, type StepProfile } from "../../src/core/step-profile.js";
import { createStepProfile, MAX_ROWS } from "../../src/core/step-profile-memory.js";
import { StepRecorder } from "../../src/core/step-recorder.js";

describe("the profile of steps", () => {
  /** A rank that has run `steps` decode steps of a kernel call and a collective each. */
  function recorded(steps: number): { readonly read: () => StepProfile; readonly recorder: StepRecorder } {
    const handle = createStepProfile(1);
    const recorder = new StepRecorder(handle, 0);
    const row = recorder.row("kernel");
    for (let step = 0; step < steps; step++) runStep(recorder, row);
    return { read: () => readStepProfile(handle), recorder };
  }

  function runStep(recorder: StepRecorder, row: number): void {
    recorder.beginStep("decode");
    const start = recorder.nowUs();
    recorder.record(row, start, 100, 7);
    recorder.leave(recorder.arrive());
    recorder.endStep();
  }

  it("counts calls, bytes and operations under their names, of each phase apart", () => {
    const { read, recorder } = recorded(3);
    recorder.beginStep("prefill");
    recorder.record(recorder.row("other"), recorder.nowUs(), 5, 1);
    recorder.endStep();
    const [rank] = read();
    assert.ok(rank !== undefined);
    const { decode, prefill } = rank.phases;
    assert.deepEqual(
      decode.kernels.map(({ name, calls, bytes, flops }) => ({ name, calls, bytes, flops })),
      [{ name: "kernel", calls: 3, bytes: 300, flops: 21 }],
    );
    assert.deepEqual([decode.steps, decode.gaps, decode.collectives.calls], [3, 2, 3]);
    assert.deepEqual(
      prefill.kernels.map(({ name, calls }) => [name, calls]),
      [["other", 1]],
    );
    assert.deepEqual([prefill.steps, prefill.gaps], [1, 0]);
  });

  it("leaves nothing of a step out: its parts add up to its time", () => {
    const { read, recorder } = recorded(0);
    const row = recorder.row("kernel");
    recorder.calibrate(row, () => recorder.record(row, recorder.nowUs(), 0, 0));
    for (let step = 0; step < 50; step++) runStep(recorder, row);
    const [rank] = read();
    assert.ok(rank !== undefined);
    const { stepMs, kernels, collectives, profilerMs, outsideMs } = rank.phases.decode;
    assert.ok(profilerMs > 0);
    const parts = kernels.reduce((sum, { ms }) => sum + ms, collectives.ms + profilerMs + outsideMs);
    assert.ok(Math.abs(parts - stepMs) < 1e-9, `expected ${stepMs} but the parts are ${parts}`);
  });

  it("has forgotten what calibrating counted", () => {
    const { read, recorder } = recorded(0);
    const row = recorder.row("kernel");
    recorder.calibrate(row, () => recorder.record(row, recorder.nowUs(), 1, 1));
    assert.deepEqual(read()[0]?.phases.decode.kernels, []);
  });

  it("tells what happened between two readings", () => {
    const { read, recorder } = recorded(2);
    const before = read();
    runStep(recorder, recorder.row("kernel"));
    const [rank] = profileSince(read(), before);
    assert.ok(rank !== undefined);
    const { steps, kernels, collectives } = rank.phases.decode;
    assert.deepEqual([steps, kernels[0]?.calls, kernels[0]?.bytes, collectives.calls], [1, 1, 100, 1]);
  });

  it("counts as waiting what passed until the last rank came, and never more than the whole", () => {
    const handle = createStepProfile(2);
    const [first, second] = [new StepRecorder(handle, 0), new StepRecorder(handle, 1)];
    for (const recorder of [first, second]) recorder.beginStep("decode");
    const early = first.arrive();
    const late = second.arrive();
    second.leave(late);
    first.leave(early);
    for (const recorder of [first, second]) recorder.endStep();
    const [one, two] = readStepProfile(handle).map(({ phases }) => phases.decode.collectives);
    assert.ok(one !== undefined && two !== undefined);
    assert.ok(Math.abs(one.waitMs - (late - early) / 1000) < 1e-9);
    assert.equal(two.waitMs, 0);
    assert.ok(one.waitMs <= one.ms);
  });

  it("holds any number of names: those that find no row share the last one, and long ones are cut", () => {
    const { read, recorder } = recorded(0);
    recorder.beginStep("decode");
    for (let i = 0; i <= MAX_ROWS; i++) recorder.record(recorder.row(`${i}-${"x".repeat(100)}`), 0, 1, 0);
    recorder.endStep();
    const kernels = read()[0]?.phases.decode.kernels ?? [];
    // The first row is that of "kernel", which was never called.
    assert.equal(kernels.length, MAX_ROWS - 1);
    assert.equal(kernels.at(-1)?.calls, 3);
    assert.match(kernels[0]?.name ?? "", /^0-x{61}$/);
  });
});
