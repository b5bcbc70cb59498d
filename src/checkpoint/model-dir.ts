/** From what a user calls a model to a path on this machine. */
import { statSync } from "node:fs";
import { resolve } from "node:path";
import { CheckpointError, OptionError } from "../core/errors.js";
import type { DownloadProgress, HubSnapshot } from "./hub-snapshot.js";

export interface ResolveModelOptions {
  /** Branch, tag or commit of a hub repository; `main` by default. */
  readonly revision?: string | undefined;
  /** False where config.json and what else describes the model will do: of a hub repository, no weights are downloaded. */
  readonly weights?: boolean | undefined;
  /** Hears of every chunk that is downloaded. */
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined;
  /** Cancels a download. */
  readonly signal?: AbortSignal | undefined;
}

export interface ResolvedModel {
  /** Absolute path of a directory or a file. */
  readonly path: string;
  /** Where it came from; null for what is local. */
  readonly hub: HubSnapshot | null;
}

/**
 * Finds a model: a local directory or file, or a repository of Hugging Face's hub, `org/name` or `org/name@revision`,
 * which is downloaded into the standard cache as far as it is needed. A local path wins over a repository of the same
 * name.
 *
 * HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
 *
 * Throws CheckpointError `MODEL_NOT_FOUND` for what is neither, OptionError `INVALID_REVISION` for a revision that
 * cannot be one or of a local path, those of `readHubSettings` and `resolveSnapshot`.
 */
export async function resolveModel(model: string, options: ResolveModelOptions = {}): Promise<ResolvedModel> {
  const { revision } = options;
  const path = resolve(model);
  if (model !== "" && exists(path)) {
    if (revision === undefined) return { path, hub: null };
    throw new OptionError(
      "INVALID_REVISION",
      `expected a hub id beside revision ${JSON.stringify(revision)} but received the local path ${path}`,
      { option: "revision", received: revision, file: path },
    );
  }
  // Loaded here because most models are local, and the hub's library takes its time.
  const { parseHubId, readHubSettings } = await import("./hub-repository.js");
  const repository = parseHubId(model, revision);
  if (repository === null) throw notFound(model, path);
  const { resolveSnapshot } = await import("./hub-snapshot.js");
  const hub = await resolveSnapshot(repository, readHubSettings(), options);
  return { path: hub.path, hub };
}

/** Whether there is something at a path. Throws CheckpointError `READ_FAILED` when it may not be looked at. */
function exists(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch (cause) {
    // Anything else (a name too long, a NUL in it) can be no path.
    if (!(cause instanceof Error && "code" in cause && cause.code === "EACCES")) return false;
    throw new CheckpointError("READ_FAILED", `cannot look at ${path}: ${cause.message}`, { file: path }, { cause });
  }
}

function notFound(model: string, path: string): CheckpointError {
  const absent = model === "" ? "" : `: there is no file or directory ${path}, and a hub id looks like org/name`;
  return new CheckpointError(
    "MODEL_NOT_FOUND",
    `expected a directory, a file or a hub id as model but received ${JSON.stringify(model)}${absent}`,
    { expected: "a directory, a file or a hub id", received: model, file: path },
  );
}
