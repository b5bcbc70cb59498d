import type { Operand } from "../core/operand.js";
import type { LayerContext } from "./layer-context.js";
import { wholeOf } from "./parameter.js";

/** Root mean square normalization (Zhang and Sennrich 2019). Its weight is whole on every rank, in f32. */
export class RMSNorm {
  readonly #context: LayerContext;
  readonly #epsilon: number;
  readonly #weight: Operand;

  constructor(
    context: LayerContext,
    options: { readonly prefix: string; readonly size: number; readonly epsilon: number },
  ) {
    this.#context = context;
    this.#epsilon = options.epsilon;
    this.#weight = normWeight(context, options.prefix, options.size);
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

/**
 * RMS normalization of each head by itself, in place, inside a buffer of heads side by side. Its weight, one head long,
 * is whole on every rank.
 */
export class HeadNorm {
  readonly #context: LayerContext;
  readonly #weight: Operand;
  readonly #headSize: number;
  readonly #epsilon: number;
  readonly #firstHead: number;
  readonly #heads: number;

  constructor(
    context: LayerContext,
    options: {
      readonly prefix: string;
      readonly headSize: number;
      readonly epsilon: number;
      /** First head of the buffer that it normalizes, and how many. */
      readonly firstHead: number;
      readonly heads: number;
    },
  ) {
    this.#context = context;
    this.#headSize = options.headSize;
    this.#epsilon = options.epsilon;
    this.#firstHead = options.firstHead;
    this.#heads = options.heads;
    this.#weight = normWeight(context, options.prefix, options.headSize);
  }

  /** x: `[rows, heads of headSize columns]` */
  forward(x: Operand, rows: number): void {
    const firstColumn = this.#firstHead * this.#headSize;
    const { kernels } = this.#context;
    kernels.headNorm(x, this.#weight, rows, firstColumn, this.#heads, this.#headSize, this.#epsilon);
  }
}

/** A norm's weight: f32, whole on every rank. */
function normWeight(context: LayerContext, prefix: string, size: number): Operand {
  const parameter = context.createParameter(prefix, {
    name: "weight",
    dtype: "f32",
    shape: [size],
    outputDim: null,
    inputDim: null,
  });
  context.addTarget(parameter.name, {
    parameter,
    shardId: null,
    // Read by every rank: it is too little to be shared.
    load: (source) => parameter.load(source, wholeOf(source.shape)),
  });
  return context.kernels.bind(parameter.tensor);
}
