/** The arrays of steps as a model's pass takes them: bound, counted, and with every token known. */
import { i32Of } from "../core/tensor.js";
import type { Kernels } from "../kernels/kernels.js";
import type { ForwardStep } from "../layers/attention.js";
import type { ModelMemory } from "../layers/model-memory.js";
import { STEP_FED, STEP_SEQUENCES, STEP_TOKENS, type Step, type Steps, stepOf } from "./step.js";

export class StepInputs {
  readonly #steps: Steps;
  readonly #plain: ReadonlyMap<Step, ForwardStep>;
  /** The same with token ids of this rank's own. */
  readonly #fed: ReadonlyMap<Step, ForwardStep>;
  readonly #fedTokenIds: Int32Array;

  constructor(steps: Steps, kernels: Kernels, memory: ModelMemory) {
    this.#steps = steps;
    this.#plain = new Map(steps.map((step) => [step, bindStep(step, kernels)]));
    if (steps.length === 1) {
      this.#fed = new Map();
      this.#fedTokenIds = new Int32Array();
    } else {
      const tokenIds = memory.integers("fedTokenIds", new Array<number>(steps[0].limits.maxTokens).fill(0));
      this.#fed = new Map([...this.#plain].map(([step, inputs]) => [step, { ...inputs, tokenIds }]));
      this.#fedTokenIds = i32Of(tokenIds.tensor);
    }
  }

  /** What step `n` asks for. The step before it must have its results, if they feed it. */
  of(n: number): ForwardStep {
    const step = stepOf(this.#steps, n);
    const { header } = step.views;
    const inputs = (header[STEP_FED] ?? 0) > 0 ? this.#feed(step, stepOf(this.#steps, n - 1)) : this.#plain.get(step);
    if (inputs === undefined) throw new RangeError("a step was run in arrays that are not bound");
    inputs.tokens = header[STEP_TOKENS] ?? 0;
    inputs.sequences = header[STEP_SEQUENCES] ?? 0;
    return inputs;
  }

  #feed(step: Step, before: Step): ForwardStep | undefined {
    const { header, tokenIds, feeds } = step.views;
    const { resultIds } = before.views;
    const rows = header[STEP_TOKENS] ?? 0;
    for (let row = 0; row < rows; row++) {
      const output = feeds[row] ?? -1;
      // A token that could not be chosen ends its sequence; what is computed from it is thrown away.
      this.#fedTokenIds[row] = output < 0 ? (tokenIds[row] ?? 0) : Math.max(0, resultIds[output] ?? 0);
    }
    return this.#fed.get(step);
  }
}

function bindStep({ tensors }: Step, kernels: Kernels): ForwardStep {
  return {
    tokens: 0,
    sequences: 0,
    tokenIds: kernels.bind(tensors.tokenIds),
    positions: kernels.bind(tensors.positions),
    slots: kernels.bind(tensors.slots),
    batch: {
      queryStarts: kernels.bind(tensors.queryStarts),
      contextLengths: kernels.bind(tensors.contextLengths),
      blockTables: kernels.bind(tensors.blockTables),
    },
  };
}
