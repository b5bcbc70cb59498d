/** The kernels of a simulation, which gives back all that it bound and recorded when it is closed. */
import { OptionError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import type { Kernels } from "../kernels/kernels.js";
import { createNativeKernels } from "../kernels/native.js";
import { createReferenceKernels } from "../kernels/reference.js";
import { createShapeOnlyKernels } from "../kernels/shape-only.js";

export interface SimulatedKernels {
  readonly kernels: Kernels;
  /** Releases every operand and every recording: the addon keeps them and the memory of bound tensors alive. */
  release(): void;
}

/**
 * Throws OptionError `INVALID_KERNELS` for another name, ShardloomError `NATIVE_KERNELS_UNAVAILABLE` where the addon
 * cannot be loaded.
 */
export function simulatedKernels(name: "reference" | "native" | "shape-only"): SimulatedKernels {
  const kernels = create(name);
  const bound: Operand[] = [];
  const bind = kernels.bind.bind(kernels);
  kernels.bind = (tensor) => {
    const operand = bind(tensor);
    bound.push(operand);
    return operand;
  };
  const recorded = new Set<() => void>();
  const record = kernels.record?.bind(kernels);
  if (record !== undefined) {
    kernels.record = (make) => {
      const made = record(make);
      recorded.add(made.release);
      return {
        ...made,
        release() {
          recorded.delete(made.release);
          made.release();
        },
      };
    };
  }
  return {
    kernels,
    release() {
      for (const forget of recorded) forget();
      recorded.clear();
      for (const operand of bound.splice(0)) kernels.release(operand);
    },
  };
}

function create(name: "reference" | "native" | "shape-only"): Kernels {
  if (name === "reference") return createReferenceKernels();
  if (name === "native") return createNativeKernels();
  if (name === "shape-only") return createShapeOnlyKernels();
  throw new OptionError(
    "INVALID_KERNELS",
    `expected kernels to be reference or native but received ${JSON.stringify(name)}`,
    { option: "kernels", expected: "reference|native", received: String(name) },
  );
}
