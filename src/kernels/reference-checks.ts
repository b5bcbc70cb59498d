/** Checks of operands that the reference kernels share. All throw InternalError: operands come from our own code. */
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";

/** Throws unless `condition` holds. */
export function expect(condition: boolean, expected: string, received: string | number): asserts condition {
  if (!condition) throw new InternalError(`expected ${expected} but received ${received}`, { expected, received });
}

export function expectRows(operand: Operand, least: number): void {
  const { rows, tensor } = operand;
  expect(Number.isInteger(least) && least >= 0 && rows >= least, `${tensor.name} to have at least ${least} rows`, rows);
}

export function expectColumns(operand: Operand, columns: number): void {
  expect(operand.columns === columns, `${operand.tensor.name} to have ${columns} columns`, operand.columns);
}

export function expectElements(operand: Operand, least: number): void {
  const elements = operand.rows * operand.columns;
  expect(elements >= least, `${operand.tensor.name} to have at least ${least} elements`, elements);
}

/** Element `index` of integers that must lie in `[0, limit)`. */
export function indexBelow(integers: Int32Array, index: number, limit: number, name: string): number {
  const value = integers[index] ?? -1;
  if (value < 0 || value >= limit) expect(false, `${name}[${index}] to be from 0 to ${limit - 1}`, value);
  return value;
}
