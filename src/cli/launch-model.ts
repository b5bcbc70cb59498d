/** From the flags to an engine that serves. */
import { type Engine, type LaunchOptions, launch } from "../index.js";
import { createLoadingBar } from "./loading-bar.js";
import { launchOptionsOf, type ModelFlags, pluginsOf } from "./model-options.js";

export interface LaunchedModel {
  readonly engine: Engine;
  /** Milliseconds from the call until the engine could serve. */
  readonly loadMs: number;
}

/** Loads the model that the flags name, with a bar where stderr is a terminal. Throws what `launch` throws. */
export async function launchModel(
  flags: ModelFlags,
  signal: AbortSignal,
  options: Pick<LaunchOptions, "profileSteps" | "loadProfile"> = {},
): Promise<LaunchedModel> {
  const startedAt = performance.now();
  const plugins = pluginsOf(flags);
  // How many ranks "auto" stands for is known when they load: one bar for all of them.
  const bar = createLoadingBar(process.stderr, flags.tp === "auto" ? 1 : flags.tp);
  try {
    const engine = await launch({
      ...launchOptionsOf(flags),
      ...options,
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
