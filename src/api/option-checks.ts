/** What the functions of the API check alike, before they find a model. */
import { resolve } from "node:path";
import { type FloatDType, isDType, isFloat } from "../core/dtype.js";
import { describeValue, OptionError } from "../core/errors.js";
import { checkWorldSize } from "../core/rank.js";
import { ACTIVATIONS, type Activations, isActivations } from "../kernels/activation-levels.js";
import type { QuantizationChoice } from "../quantization/registry.js";
import type { QuantizationOptions } from "./model-selection.js";

/** The most bytes of tensors in a file that is written, where nobody says it. */
export const DEFAULT_SHARD_BYTES = 5_000_000_000;

/** Throws OptionError `INVALID_OPTION` for options of no method. */
export function choiceOf({ quantization, quantizationOptions = {} }: QuantizationOptions): QuantizationChoice | null {
  if (quantization !== undefined) return { method: quantization, options: quantizationOptions };
  const [option] = Object.keys(quantizationOptions);
  if (option === undefined) return null;
  throw new OptionError(
    "INVALID_OPTION",
    `expected the name of a method as quantization beside quantizationOptions, which have ${JSON.stringify(option)}, but received none`,
    { option: "quantization", expected: "a method", received: "none" },
  );
}

/** Throws OptionError `INVALID_OPTION` for what is given and no boolean. */
export function checkPinning(value: unknown): boolean | undefined {
  if (value === undefined || typeof value === "boolean") return value;
  throw new OptionError("INVALID_OPTION", `expected pinning to be a boolean but received ${describeValue(value)}`, {
    option: "pinning",
    expected: "boolean",
    received: String(value),
  });
}

/** Throws OptionError `INVALID_WORLD_SIZE`. */
export function checkRanks(value: number | "auto"): number | "auto" {
  return value === "auto" ? value : checkWorldSize(value, "tensorParallelSize", '"auto" or ');
}

/** Throws OptionError `INVALID_OPTION` for what is no whole number of at least 1. */
export function checkCount(option: string, value: unknown): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value > 0) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be a whole number of at least 1 but received ${describeValue(value)}`,
    { option, expected: "1..", received: String(value) },
  );
}

/** The absolute path of what is to be made. Throws OptionError `INVALID_OPTION` for what names nothing. */
export function checkOut(value: unknown): string {
  if (typeof value === "string" && value !== "") return resolve(value);
  throw new OptionError("INVALID_OPTION", `expected out to be a path but received ${describeValue(value)}`, {
    option: "out",
    expected: "a path",
    received: String(value),
  });
}

/** Throws OptionError `INVALID_OPTION` for what is no level. */
export function checkActivations(value: unknown): Activations {
  if (typeof value === "string" && isActivations(value)) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected activations to be ${ACTIVATIONS.join(", ")} but received ${describeValue(value)}`,
    { option: "activations", expected: ACTIVATIONS.join("|"), received: String(value) },
  );
}

/** Throws OptionError `INVALID_OPTION` for what is no dtype of floating-point numbers. */
export function checkDtype(option: string, value: unknown): FloatDType {
  if (typeof value === "string" && isDType(value) && isFloat(value)) return value;
  throw new OptionError(
    "INVALID_OPTION",
    `expected ${option} to be f32, bf16 or f16 but received ${describeValue(value)}`,
    {
      option,
      expected: "f32|bf16|f16",
      received: String(value),
    },
  );
}
