import { OptionError } from "../core/errors.js";
import { nativeAddon } from "../core/native-addon.js";
import type { Activations } from "./activation-levels.js";
import type { Kernels } from "./kernels.js";
import { createNativeKernels } from "./native.js";
import { createReferenceKernels } from "./reference.js";

/**
 * The kernels this thread uses, at a level of activations (activation-levels.ts): those of the addon where it can be loaded, otherwise the reference kernels, after one
 * warning that says why. `SHARDLOOM_KERNELS` forces one: `reference` without a warning, `native` with an error when the
 * addon cannot be loaded.
 *
 * Throws OptionError `INVALID_KERNELS` for another value, OptionError `UNSUPPORTED_ISA` when SHARDLOOM_ISA names what
 * this machine cannot run, ShardloomError `NATIVE_KERNELS_UNAVAILABLE`.
 */
export function createKernels(activations: Activations, warn: (message: string) => void): Kernels {
  const wanted = process.env["SHARDLOOM_KERNELS"] ?? "";
  if (wanted !== "" && wanted !== "native" && wanted !== "reference") {
    throw new OptionError(
      "INVALID_KERNELS",
      `expected SHARDLOOM_KERNELS to be native or reference but received ${JSON.stringify(wanted)}`,
      { option: "SHARDLOOM_KERNELS", expected: "native|reference", received: wanted },
    );
  }
  if (wanted === "reference") return createReferenceKernels(activations);
  const native = nativeAddon();
  if (native.loaded || native.error !== undefined || wanted === "native") return createNativeKernels(activations);
  warn(`the native addon cannot be used: ${native.reason}; the slow reference kernels are used instead`);
  return createReferenceKernels(activations);
}
