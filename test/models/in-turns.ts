/** An engine whose ranks take turns in the test's thread. */
import { createLogger } from "../../src/core/logger.js";
import { type CapacityOptions, planCapacity } from "../../src/engine/capacity.js";
import { createEngine, type Engine, prepareText } from "../../src/engine/engine.js";
import type { Kernels } from "../../src/kernels/kernels.js";
import type { KvCacheDType } from "../../src/kernels/kv-cache-dtype.js";
import { createKernels } from "../../src/kernels/select.js";
import { createRegistries, type Plugin, registerPlugin } from "../../src/loading/plugins.js";
import { selectFamily } from "../../src/models/registry.js";
import type { QuantizationChoice } from "../../src/quantization/registry.js";
import { TurnsExecutor } from "../../src/testing/turns-executor.js";

export interface InTurnsOptions extends CapacityOptions {
  readonly plugins?: readonly Plugin[];
  readonly quantization?: QuantizationChoice;
  readonly worldSize: number;
  readonly kernels?: Kernels;
  readonly kvCacheDtype?: KvCacheDType;
}

export async function engineInTurns(path: string, options: InTurnsOptions): Promise<Engine> {
  const { worldSize, kvCacheDtype = "f32" } = options;
  const registries = createRegistries();
  for (const plugin of options.plugins ?? []) registerPlugin(registries, plugin);
  const loader = registries.modelLoaders.select(path);
  const description = await loader.describe(path);
  const config = selectFamily(description.config).parseConfig(description.config);
  const capacity = planCapacity(config, options, worldSize, kvCacheDtype);
  const quantization = registries.quantization.select(description.config, options.quantization ?? null);
  const kernels = options.kernels ?? createKernels("f32", (message) => console.warn(message));
  const executor = await TurnsExecutor.create(
    {
      path,
      loadFormat: loader.format,
      description,
      worldSize,
      dtype: config.dtype,
      kvCacheDtype,
      activations: "f32",
      quantization,
      ...capacity,
    },
    registries,
    kernels,
  );
  return createEngine({ executor, text: prepareText(description, executor.config), logger: createLogger("error") });
}
