import type { Tensor } from "./tensor.js";

/** A tensor that kernels can work on: made once by `bind`, then passed in every step without any look-up. */
export interface Operand {
  readonly tensor: Tensor;
  /** What the implementation knows the tensor by. */
  readonly handle: number;
  /** First extent of the shape; 1 for a vector. */
  readonly rows: number;
  /** Product of the other extents; the length of a vector. */
  readonly columns: number;
}
