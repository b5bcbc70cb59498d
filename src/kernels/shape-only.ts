/**
 * Kernels for tensors without bytes: they bind shapes and compute nothing. With them a model is built, partitioned, loaded
 * and stepped through as ever, at any size, and no weight is read or stored.
 */
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { elementCount, type Tensor } from "../core/tensor.js";
import type { Kernels } from "./kernels.js";

/** Kernels whose operands may be virtual tensors. */
export function createShapeOnlyKernels(): Kernels {
  return {
    backend: "shape-only",
    isa: "none",
    bind,
    release: nothing,
    prepareLinear: (weight) => weight,
    takesRowGroups: () => false,
    releaseLinear: nothing,
    embedding: nothing,
    gatherRows: nothing,
    rmsNorm: nothing,
    addRmsNorm: nothing,
    headNorm: nothing,
    linear: nothing,
    rope: nothing,
    writeKv: nothing,
    attention: nothing,
    siluMul: nothing,
    argmax: nothing,
  };
}

function bind(tensor: Tensor): Operand {
  const { name, shape } = tensor;
  if (shape.length === 0 || !shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0)) {
    throw new InternalError(`${name}: expected a shape of whole numbers but received [${shape.join(", ")}]`);
  }
  const rows = shape.length === 1 ? 1 : (shape[0] ?? 0);
  return { tensor, handle: 0, rows, columns: elementCount(shape.length === 1 ? shape : shape.slice(1)) };
}

function nothing(): void {}
