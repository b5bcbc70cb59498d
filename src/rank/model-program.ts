/** What a rank does in production: it loads plugins and its part of the model, and drives steps with real collectives. */
import { SharedReadsMemory } from "../checkpoint/shared-reads-memory.js";
import { type Collective, drive } from "../collectives/collective.js";
import { profiledCollective } from "../collectives/profiled.js";
import { createSharedMemoryCollective } from "../collectives/shared-memory.js";
import { singleRank } from "../collectives/single.js";
import { verifiedCollective } from "../collectives/verified.js";
import { createLogger } from "../core/logger.js";
import { StepRecorder } from "../core/step-recorder.js";
import type { Kernels } from "../kernels/kernels.js";
import { profiledKernels } from "../kernels/profiled.js";
import { createKernels } from "../kernels/select.js";
import type { AllocatorFactory } from "../layers/model-memory.js";
import { LoadRecorder, loadClock } from "../loading/load-recorder.js";
import { loadPlugins } from "../loading/plugins.js";
import { ModelRunner } from "./model-runner.js";
import { profiledStep } from "./profiled-step.js";
import type { CheckpointInterceptor } from "./rank-model.js";
import type { RankProgram } from "./rank-server.js";
import type { RankInit } from "./rank-service.js";
import { applyThreads } from "./rank-threads.js";
import { Step, type Steps } from "./step.js";

/** What stands between a rank and others, its weights and its memory. In production nothing does. */
export interface RankSeams {
  collective(sound: Collective): Collective;
  readonly checkpoint: CheckpointInterceptor;
  readonly allocator: AllocatorFactory;
}

export const modelProgram = createModelProgram();

/** The program of production; with `seamsOf`, which is asked once when a rank loads, the one for tests. */
export function createModelProgram(seamsOf?: (init: RankInit) => RankSeams): RankProgram {
  return {
    async load(init, onProgress) {
      const { loadProfileOriginMs: originMs } = init;
      const loadRecorder = originMs === undefined ? undefined : new LoadRecorder(init.rank, loadClock(originMs));
      loadRecorder?.enter("other", "plugins");
      const logger = createLogger(init.logLevel, { base: { pid: process.pid, rank: init.rank } });
      const registries = await loadPlugins(init.plugins);
      loadRecorder?.leave();
      // Whoever launched the ranks has warned already: all threads find the same addon, or none.
      const plain = createKernels(init.options.activations, (message) => {
        logger.debug(message);
      });
      if (plain.backend === "native") applyThreads(init.threads, logger);
      const recorder = init.profile === null ? null : new StepRecorder(init.profile, init.rank);
      const kernels = recorder === null ? plain : profiledKernels(plain, recorder);
      const seams = seamsOf?.(init);
      const used = createCollective(init, kernels, seams);
      const collective = recorder === null ? used : profiledCollective(used, recorder);
      const [first, ...others] = init.steps;
      const steps: Steps = [Step.from(first), ...others.map((handle) => Step.from(handle))];
      const shared = seams === undefined ? sharedReadsOf(init, loadRecorder) : undefined;
      const runner = await ModelRunner.load(init.options, init.rank, {
        registries,
        kernels,
        collective,
        steps,
        onProgress,
        logger,
        recorder: loadRecorder,
        ...(seams === undefined ? { shared } : { allocator: seams.allocator, intercept: seams.checkpoint }),
      });
      const runStep = (n: number): void => drive(runner.runStep(n), collective);
      shared?.close();
      return {
        report: runner.report,
        runStep: recorder === null ? runStep : profiledStep(runStep, steps, recorder),
        abort: () => collective.abort(),
      };
    },
  };
}

/** What ranks are made to read for a test they read themselves: only without seams do they share. */
function sharedReadsOf({ sharedReads }: RankInit, observer: LoadRecorder | undefined): SharedReadsMemory | undefined {
  if (sharedReads === null) return undefined;
  return new SharedReadsMemory(sharedReads, observer === undefined ? {} : { observer });
}

function createCollective(init: RankInit, kernels: Kernels, seams: RankSeams | undefined): Collective {
  const { region, rank, collectiveTimeoutMs: timeoutMs, verifyCollectives, threads } = init;
  const native = kernels.backend === "native";
  const options = { timeoutMs, native, waiting: threads.waiting };
  const sound = region === null ? singleRank : createSharedMemoryCollective(region, rank, options);
  const used = seams?.collective(sound) ?? sound;
  if (!verifyCollectives || region === null) return used;
  return verifiedCollective(used, (tensor) => kernels.bind(tensor), sound);
}
