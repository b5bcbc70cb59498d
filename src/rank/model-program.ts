/** What a rank does in production: it loads plugins and its part of the model, and drives steps with real collectives. */
import { type Collective, drive } from "../collectives/collective.js";
import { createSharedMemoryCollective } from "../collectives/shared-memory.js";
import { singleRank } from "../collectives/single.js";
import { createLogger } from "../core/logger.js";
import type { Kernels } from "../kernels/kernels.js";
import { createKernels } from "../kernels/select.js";
import { loadPlugins } from "../loading/plugins.js";
import { ModelRunner } from "./model-runner.js";
import type { RankProgram } from "./rank-server.js";
import type { RankInit } from "./rank-service.js";
import { Step } from "./step.js";

export const modelProgram: RankProgram = {
  async load(init, onProgress) {
    const logger = createLogger(init.logLevel, { base: { pid: process.pid, rank: init.rank } });
    const registries = await loadPlugins(init.plugins);
    // Whoever launched the ranks has warned already: all threads find the same addon, or none.
    const kernels = createKernels((message) => {
      logger.debug(message);
    });
    const collective = createCollective(init, kernels);
    const step = Step.from(init.step);
    const runner = await ModelRunner.load(init.options, init.rank, { registries, kernels, step, onProgress, logger });
    return {
      report: runner.report,
      runStep: () => drive(runner.runStep(), collective),
      abort: () => collective.abort(),
    };
  },
};

function createCollective(init: RankInit, kernels: Kernels): Collective {
  if (init.region === null) return singleRank;
  return createSharedMemoryCollective(init.region, init.rank, {
    timeoutMs: init.collectiveTimeoutMs,
    native: kernels.backend === "native",
  });
}
