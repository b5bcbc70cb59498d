import assert from "node:assert/strict";
import type { AllReduce, Collective, CollectiveRequest, Pass } from "../../src/collectives/collective.js";
import { VirtualAllocator } from "../../src/core/arena.js";
import type { Kernels, Recorded } from "../../src/kernels/kernels.js";
import { createShapeOnlyKernels } from "../../src/kernels/shape-only.js";
import type { ForwardStep } from "../../src/layers/attention.js";
import type { LinearMethod } from "../../src/quantization/contract.js";
import { UnquantizedLinearMethod } from "../../src/quantization/unquantized.js";
import { RecordedForward } from "../../src/rank/recorded-forward.js";

const kernels = createShapeOnlyKernels();
const operand = kernels.bind(new VirtualAllocator("test").allocate("data", "f32", [64]));

function createStep(tokens: number, sequences: number): ForwardStep {
  const batch = { queryStarts: operand, contextLengths: operand, blockTables: operand };
  return { tokens, sequences, tokenIds: operand, positions: operand, slots: operand, batch };
}

/** A model of two parts with a sum between them, and kernels that say when its calls are written down and made again. */
function traced(
  methods: readonly LinearMethod[] = [new UnquantizedLinearMethod()],
  recorder: Pick<Kernels, "record"> | undefined = undefined,
) {
  const trace: string[] = [];
  let kept = 0;
  const request: AllReduce = { kind: "allReduce", site: "sum", data: operand, count: 0 };
  const model = {
    *forward(step: ForwardStep): Pass {
      trace.push(`first ${step.tokens}`);
      request.count = step.tokens;
      yield request;
      trace.push(`second ${step.tokens}`);
    },
  };
  const tracing: Pick<Kernels, "record"> = {
    record<Result>(make: () => Result): Recorded<Result> {
      const start = trace.length;
      const result = make();
      const calls = trace.slice(start);
      kept++;
      return {
        result,
        release: () => kept--,
        replay: () => {
          trace.push(...calls.map((call) => `${call} again`));
          return 0;
        },
      };
    },
  };
  const forward = new RecordedForward({ model, kernels: recorder ?? tracing, methods });
  /** Runs a step, with the counts of its collectives among the calls. */
  const run = (step: ForwardStep): readonly string[] => {
    trace.length = 0;
    for (const asked of forward.forward(step)) {
      assert.equal(asked.kind, "allReduce");
      trace.push(`sum of ${asked.kind === "allReduce" ? asked.count : Number.NaN}`);
    }
    return [...trace];
  };
  return { run, kept: () => kept };
}

const made = (n: number): readonly string[] => [`first ${n}`, `sum of ${n}`, `second ${n}`];
const again = (n: number): readonly string[] => [`first ${n} again`, `sum of ${n}`, `second ${n} again`];

describe("the forward pass of steps that are alike", () => {
  it("is made twice, and again from what was written down then, with the same collectives between", () => {
    const { run } = traced();
    const step = createStep(1, 1);
    assert.deepEqual([run(step), run(step), run(step), run(step)], [made(1), made(1), again(1), again(1)]);
  });

  it("is another one where the arrays, the tokens or the sequences are others", () => {
    const { run } = traced();
    const step = createStep(2, 2);
    for (let i = 0; i < 3; i++) run(step);
    assert.deepEqual(run(createStep(2, 2)), made(2));
    step.tokens = 3;
    assert.deepEqual([run(step), run(step), run(step)], [made(3), made(3), again(3)]);
    step.sequences = 3;
    assert.deepEqual([run(step), run(step), run(step)], [made(3), made(3), again(3)]);
  });

  it("keeps what was written down of the last step alone in the same arrays", () => {
    const { run, kept } = traced();
    const [step, other] = [createStep(1, 1), createStep(1, 1)];
    for (const tokens of [1, 2, 1, 3]) {
      step.tokens = tokens;
      run(step);
      assert.equal(kept(), 0);
      for (let i = 0; i < 3; i++) run(step);
      assert.equal(kept(), 2);
    }
    for (let i = 0; i < 2; i++) run(other);
    assert.equal(kept(), 4);
  });

  it("asks for what it asked for when it was written down, though layers use their requests again", () => {
    const { run } = traced();
    const [one, many] = [createStep(1, 1), createStep(9, 1)];
    for (let i = 0; i < 2; i++) run(one);
    run(many);
    assert.deepEqual(run(one), again(1));
  });

  it("is always made where a linear method does not say that it may be written down", () => {
    const other: LinearMethod = Object.assign(new UnquantizedLinearMethod(), { recordable: false });
    const { run } = traced([new UnquantizedLinearMethod(), other]);
    const step = createStep(1, 1);
    for (let i = 0; i < 4; i++) assert.deepEqual(run(step), made(1));
  });

  it("is always made where a linear method meets the other ranks by itself", () => {
    class Reducing extends UnquantizedLinearMethod implements LinearMethod {
      *applyReduced(): Pass {}
    }
    const { run } = traced([new Reducing()]);
    const step = createStep(1, 1);
    for (let i = 0; i < 4; i++) assert.deepEqual(run(step), made(1));
  });

  it("is always made by kernels that cannot write it down", () => {
    const { run } = traced([new UnquantizedLinearMethod()], kernels);
    const step = createStep(1, 1);
    for (let i = 0; i < 4; i++) assert.deepEqual(run(step), made(1));
  });

  it("is written down whole where collectives can be made again, and they hear what came of theirs", () => {
    const trace: string[] = [];
    const request: AllReduce = { kind: "allReduce", site: "sum", data: operand, count: 0 };
    const model = {
      *forward(step: ForwardStep): Pass {
        request.count = step.tokens;
        yield request;
        trace.push("made");
      },
    };
    const counts = (requests: readonly CollectiveRequest[]): string =>
      requests.map((asked) => (asked.kind === "allReduce" ? asked.count : asked.kind)).join();
    const collective: Collective = {
      rank: 0,
      worldSize: 2,
      execute: (asked) => void trace.push(`executed ${counts([asked])}`),
      replayed: (requests, outcome) => void trace.push(`replayed ${counts(requests)}: ${outcome}`),
      abort() {},
    };
    const recorder: Pick<Kernels, "record"> = {
      record: (make) => ({ result: make(), replay: () => 3, release: () => void trace.push("released") }),
    };
    const methods = [new UnquantizedLinearMethod()];
    const forward = new RecordedForward({ model, kernels: recorder, methods, collective });
    const [step, other] = [createStep(4, 4), createStep(5, 5)];
    // The first pass is driven by whoever runs it.
    assert.equal([...forward.forward(step)].length, 1);
    assert.deepEqual([...forward.forward(step)], []);
    assert.equal([...forward.forward(other)].length, 1);
    assert.deepEqual([...forward.forward(step)], []);
    assert.deepEqual(trace, ["made", "executed 4", "made", "made", "replayed 4: 3"]);
    step.sequences = 5;
    assert.equal([...forward.forward(step)].length, 1);
    assert.deepEqual(trace.slice(5), ["released", "made"]);
  });
});
