/** shardloom itself. */
import type { LaunchOptions } from "../../src/index.js";
import type { BenchModel } from "../models/model-store.js";
import type { Capacity, Contestant } from "./contestant.js";
import { startProcess } from "./process-contestant.js";

/** How shardloom runs a model. */
export interface Setup {
  /** As it stands in tables. */
  readonly name: string;
  /** Plain data only. */
  readonly options: Pick<
    LaunchOptions,
    "tensorParallelSize" | "threadsPerRank" | "activations" | "kvCacheDtype" | "pinning" | "kvCacheBytes"
  >;
  /** Added to the environment. */
  readonly environment?: NodeJS.ProcessEnv;
}

/** Starts it in a process of its own. Rejects with what `launch` throws. */
export function startShardloom(model: BenchModel, setup: Setup, capacity: Capacity): Promise<Contestant> {
  const { name, options, environment = {} } = setup;
  return startProcess({
    name,
    peer: false,
    script: new URL("./shardloom-process.js", import.meta.url),
    args: [JSON.stringify(model), JSON.stringify(options)],
    environment,
    vocabulary: model.shape.vocabulary,
    capacity,
  });
}
