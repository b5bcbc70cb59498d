import type { Operand } from "../core/operand.js";
import type { LayerContext } from "./layer-context.js";
import { type Parameter, wholeOf } from "./parameter.js";

/** Root mean square normalization (Zhang and Sennrich 2019). Its weight is whole on every rank, in f32. */
export class RMSNorm {
  readonly #context: LayerContext;
  readonly #parameter: Parameter;
  readonly #epsilon: number;
  #weight: Operand;

  constructor(
    context: LayerContext,
    options: { readonly prefix: string; readonly size: number; readonly epsilon: number },
  ) {
    this.#context = context;
    this.#epsilon = options.epsilon;
    const spec = { name: "weight", dtype: "f32", shape: [options.size], outputDim: null, inputDim: null } as const;
    this.#parameter = context.createParameter(options.prefix, spec);
    this.#weight = context.kernels.bind(this.#parameter.tensor);
    context.addTarget(this.#parameter.name, {
      parameter: this.#parameter,
      shardId: null,
      load: (source) => this.#parameter.load(source, wholeOf(source.shape)),
    });
  }

  /** `out = norm(x)`, `[rows, size]`. */
  forward(out: Operand, x: Operand, rows: number): void {
    this.#context.kernels.rmsNorm(out, x, this.#weight, rows, this.#epsilon);
  }

  /** `residual += x`, then `out = norm(residual)`. */
  forwardWithResidual(out: Operand, residual: Operand, x: Operand, rows: number): void {
    this.#context.kernels.addRmsNorm(out, residual, x, this.#weight, rows, this.#epsilon);
  }
}
