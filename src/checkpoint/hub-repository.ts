/**
 * Where Hugging Face's hub and its cache are, and how a repository lies in that cache: the layout that
 * huggingface_hub and @huggingface/hub share.
 *
 *     models--ORG--NAME/refs/REVISION        the commit that a branch or tag stood for when it was last asked
 *     models--ORG--NAME/snapshots/COMMIT/F   a link to
 *     models--ORG--NAME/blobs/ETAG           the bytes
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { getHFHubCachePath, getRepoFolderName, HUB_URL } from "@huggingface/hub";
import { describeValue, OptionError } from "../core/errors.js";

export const DEFAULT_REVISION = "main";

const COMMIT = /^[0-9a-f]{40}$/;

/** A model repository at a revision: a branch, a tag or a commit. */
export interface HubRepository {
  /** `org/name` */
  readonly id: string;
  readonly revision: string;
}

/** What the environment says about the hub. */
export interface HubSettings {
  /** HF_ENDPOINT, without a slash at its end. */
  readonly endpoint: string;
  /** HF_TOKEN */
  readonly token: string | null;
  /** HF_HUB_OFFLINE */
  readonly offline: boolean;
  /** HF_HUB_CACHE, or `hub` in HF_HOME, or the default below the user's cache folder. */
  readonly cacheDirectory: string;
}

/**
 * Reads HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE and HF_HOME; an empty variable is an unset one. Throws
 * OptionError `INVALID_HUB_ENDPOINT` or `INVALID_HUB_TOKEN`.
 */
export function readHubSettings(): HubSettings {
  const endpoint = (process.env["HF_ENDPOINT"] || HUB_URL).replace(/\/+$/, "");
  if (!URL.canParse(endpoint) || !/^https?:$/.test(new URL(endpoint).protocol)) {
    throw new OptionError(
      "INVALID_HUB_ENDPOINT",
      `expected HF_ENDPOINT to be an http or https address but received ${describeValue(endpoint)}`,
      { option: "HF_ENDPOINT", received: endpoint },
    );
  }
  const token = process.env["HF_TOKEN"] || null;
  if (token !== null && !token.startsWith("hf_")) {
    // The value stays out of the message: it may be a secret all the same.
    throw new OptionError("INVALID_HUB_TOKEN", "expected HF_TOKEN to start with hf_ but received another text", {
      option: "HF_TOKEN",
    });
  }
  const offline = /^(1|true|yes|on)$/i.test(process.env["HF_HUB_OFFLINE"] ?? "");
  return { endpoint, token, offline, cacheDirectory: getHFHubCachePath() };
}

/**
 * Reads `org/name` or `org/name@revision`; null when `model` does not look like a hub id. `revision` is an option beside
 * it. Throws OptionError `INVALID_REVISION` for one that cannot be a Git revision, or two different ones.
 */
export function parseHubId(model: string, revision: string | undefined): HubRepository | null {
  const [, id, suffix] = /^(\w[\w.-]{0,95}\/\w[\w.-]{0,95})(?:@(.*))?$/.exec(model) ?? [];
  // Both would be ambiguous in the cache's folder names; the hub allows neither.
  if (id === undefined || id.includes("--") || id.includes("..")) return null;
  if (suffix !== undefined && revision !== undefined && suffix !== revision) {
    throw invalidRevision(`${JSON.stringify(revision)} as an option and ${JSON.stringify(suffix)} in ${model}`);
  }
  const chosen = suffix ?? revision ?? DEFAULT_REVISION;
  // It names a file in the cache: nothing that leads out of refs/.
  if (!/^\w[\w.-]*(\/\w[\w.-]*)*$/.test(chosen) || chosen.includes("..")) {
    throw invalidRevision(JSON.stringify(chosen));
  }
  return { id, revision: chosen };
}

/** Whether a text is a full commit hash; only such a text becomes the name of a snapshot. */
export function isCommit(text: string): boolean {
  return COMMIT.test(text);
}

/** The repository's folder in the cache. */
export function repositoryFolder(settings: HubSettings, { id }: HubRepository): string {
  return join(settings.cacheDirectory, getRepoFolderName({ type: "model", name: id }));
}

export function snapshotFolder(settings: HubSettings, repository: HubRepository, commit: string): string {
  return join(repositoryFolder(settings, repository), "snapshots", commit);
}

/** The file that remembers which commit the revision stood for. */
export function refFile(settings: HubSettings, repository: HubRepository): string {
  return join(repositoryFolder(settings, repository), "refs", repository.revision);
}

/** The commit of the revision as the cache knows it, or null. */
export function cachedCommit(settings: HubSettings, repository: HubRepository): string | null {
  if (isCommit(repository.revision)) return repository.revision;
  const file = refFile(settings, repository);
  if (!existsSync(file)) return null;
  const commit = readFileSync(file, "utf8").trim();
  return isCommit(commit) ? commit : null;
}

function invalidRevision(received: string): OptionError {
  return new OptionError(
    "INVALID_REVISION",
    `expected one branch, tag or commit as revision but received ${received}`,
    {
      option: "revision",
      received,
    },
  );
}
