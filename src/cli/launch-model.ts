/** From the flags to an engine that serves. */
import { createLogger } from "../core/logger.js";
import { type Engine, launch } from "../index.js";
import { defaultPlugins } from "./default-plugins.js";
import { createLoadingBar } from "./loading-bar.js";
import { launchOptionsOf, logLevelOf, type ModelFlags } from "./model-options.js";

export interface LaunchedModel {
  readonly engine: Engine;
  /** Milliseconds from the call until the engine could serve. */
  readonly loadMs: number;
}

/** Loads the model that the flags name, with a bar where stderr is a terminal. Throws what `launch` throws. */
export async function launchModel(flags: ModelFlags, signal: AbortSignal): Promise<LaunchedModel> {
  const startedAt = performance.now();
  const logger = createLogger(logLevelOf(flags));
  // Those that the user names come first, and are the first to be asked whether they recognize the model.
  const plugins = [...(flags.plugin ?? []), ...(flags.defaultPlugins ? defaultPlugins(logger) : [])];
  const bar = createLoadingBar(process.stderr);
  try {
    const engine = await launch({
      ...launchOptionsOf(flags),
      plugins,
      signal,
      ...(bar === null
        ? {}
        : { onDownload: (progress) => bar.downloaded(progress), onProgress: (progress) => bar.loaded(progress) }),
    });
    return { engine, loadMs: performance.now() - startedAt };
  } finally {
    bar?.stop();
  }
}
