/** A repository's snapshot in the hub's cache: found there, or downloaded as far as a model needs it. */

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { downloadFile, type ListFileEntry, listFiles, modelInfo } from "@huggingface/hub";
import { CheckpointError, reasonOf } from "../core/errors.js";
import { hubError, isOutage } from "./hub-error.js";
import {
  cachedCommit,
  type HubRepository,
  type HubSettings,
  isCommit,
  refFile,
  repositoryFolder,
  snapshotFolder,
} from "./hub-repository.js";
import { type RemoteFile, storeFile, storeRef } from "./hub-store.js";
import { selectWeightFiles } from "./index-file.js";

/** How far a download is. */
export interface DownloadProgress {
  /** File that is being downloaded. */
  readonly file: string;
  readonly fileBytes: number;
  readonly fileReceivedBytes: number;
  /** Of all files downloaded in a row: first the descriptions, which are small, then the weights. */
  readonly totalBytes: number;
  readonly totalReceivedBytes: number;
}

export interface SnapshotOptions {
  /** False for what describes the model alone: config.json, the index, the tokenizer. Default true. */
  readonly weights?: boolean | undefined;
  /** Called for every chunk of every file that is downloaded; never for what the cache already holds. */
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface HubSnapshot {
  readonly path: string;
  readonly commit: string;
  /** False when the hub was not asked which commit the revision stands for: offline, or out of reach. */
  readonly checked: boolean;
}

/** Beside the weights, what describes a model is small: JSON, the tokenizer's files, the chat template. */
const DESCRIPTION = /^([^/\\]+\.json|[^/\\]+\.jinja|tokenizer[^/\\]*|merges\.txt|vocab\.txt)$/;
/** JSON of weights in other formats. */
const OTHER_INDEX = /\.(bin|h5|msgpack)\.index\.json$/;

/**
 * The snapshot of `repository`, with all that a model needs in it. Asks the hub once, for the commit and the file
 * names; if the cache has them all, that was all. When the hub cannot be asked because it is down or out of reach, a
 * complete cached snapshot of the revision stands in (`checked` is false then); offline the cache is the only place to
 * look.
 *
 * A snapshot is downloaded file by file, descriptions before weights, and `refs/REVISION` is moved last: an interrupted
 * download continues with the next file, and never takes the place of a complete one.
 *
 * Throws CheckpointError `HUB_OFFLINE` when the cache alone would have to do and lacks something, the codes of
 * `hubError`, `storeFile` and `selectWeightFiles`; RequestError `CANCELLED`.
 */
export async function resolveSnapshot(
  repository: HubRepository,
  settings: HubSettings,
  options: SnapshotOptions = {},
): Promise<HubSnapshot> {
  const cached = findCached(repository, settings, options.weights ?? true);
  if (settings.offline) {
    if (typeof cached === "string") throw offlineError(repository, settings, cached);
    return cached;
  }
  const download = new SnapshotDownload(repository, settings, options);
  try {
    return await download.run();
  } catch (cause) {
    const error = hubError(cause, repository, settings, options.signal);
    // Once the hub has named a newer commit, an old one is no answer.
    if (download.answered || !isOutage(error) || typeof cached === "string") throw error;
    return cached;
  }
}

/** The snapshot that the cache has of a revision, complete as far as it is needed, or what it lacks. */
function findCached(repository: HubRepository, settings: HubSettings, weights: boolean): HubSnapshot | string {
  const commit = cachedCommit(settings, repository);
  if (commit === null) return "nothing of it";
  const path = snapshotFolder(settings, repository, commit);
  if (!existsSync(join(path, "config.json"))) return `no config.json of commit ${commit}`;
  if (!weights) return { path, commit, checked: false };
  try {
    const missing = selectWeightFiles(readdirSync(path), path).files.find((name) => !existsSync(join(path, name)));
    return missing === undefined ? { path, commit, checked: false } : `no ${missing} of commit ${commit}`;
  } catch (error) {
    return reasonOf(error);
  }
}

function offlineError(
  { id, revision }: HubRepository,
  { cacheDirectory }: HubSettings,
  found: string,
): CheckpointError {
  const subject = `${id}@${revision}`;
  return new CheckpointError(
    "HUB_OFFLINE",
    `${subject} (no local path): expected it in ${cacheDirectory}, because HF_HUB_OFFLINE is set, but found ${found}`,
    { file: subject, expected: cacheDirectory, received: found },
  );
}

/** One download: the parameters of every request, and the listing once it was asked for. */
class SnapshotDownload {
  readonly #repository: HubRepository;
  readonly #settings: HubSettings;
  readonly #options: SnapshotOptions;
  #listing: Promise<ReadonlyMap<string, RemoteFile>> | null = null;
  #answered = false;

  constructor(repository: HubRepository, settings: HubSettings, options: SnapshotOptions) {
    this.#repository = repository;
    this.#settings = settings;
    this.#options = options;
  }

  /** Whether the hub has said which commit the revision stands for. */
  get answered(): boolean {
    return this.#answered;
  }

  async run(): Promise<HubSnapshot> {
    this.#options.signal?.throwIfAborted();
    const { commit, names } = await this.#askRevision();
    const path = snapshotFolder(this.#settings, this.#repository, commit);
    const descriptions = names.filter((name) => DESCRIPTION.test(name) && !OTHER_INDEX.test(name));
    await this.#ensure(descriptions, path, commit);
    // The revision's name is left where it is: it stands for a snapshot that can be loaded.
    if (this.#options.weights === false) return { path, commit, checked: true };
    const { id, revision } = this.#repository;
    const { files } = selectWeightFiles(names, path, `${id}@${revision}`);
    await this.#ensure(files, path, commit);
    if (revision !== commit && cachedCommit(this.#settings, this.#repository) !== commit) {
      await storeRef(refFile(this.#settings, this.#repository), commit);
    }
    return { path, commit, checked: true };
  }

  async #askRevision(): Promise<{ commit: string; names: readonly string[] }> {
    const { id: name, revision } = this.#repository;
    const fields: ("sha" | "filePaths")[] = ["sha", "filePaths"];
    const info = await modelInfo({ name, revision, additionalFields: fields, ...this.#request() });
    const commit: unknown = info.sha;
    if (typeof commit !== "string" || !isCommit(commit)) throw new Error("it names no commit");
    this.#answered = true;
    return { commit, names: info.filePaths.filter((path: unknown) => typeof path === "string") };
  }

  /** Downloads what the snapshot at `path` lacks of the files `names`. */
  async #ensure(names: readonly string[], path: string, commit: string): Promise<void> {
    const missing = names.filter((name) => !existsSync(join(path, name)));
    if (missing.length === 0) return;
    this.#listing ??= this.#list(commit);
    const listing = await this.#listing;
    const files = missing.map((name) => {
      const file = listing.get(name);
      if (file === undefined) throw this.#missing(name);
      return file;
    });
    const total = { bytes: files.reduce((sum, file) => sum + file.sizeBytes, 0), received: 0 };
    for (const file of files) await this.#download(file, path, commit, total);
  }

  async #download(file: RemoteFile, path: string, commit: string, total: Total): Promise<void> {
    let received = 0;
    const onBytes = (sizeBytes: number): void => {
      received += sizeBytes;
      total.received += sizeBytes;
      this.#options.onProgress?.({
        file: file.path,
        fileBytes: file.sizeBytes,
        fileReceivedBytes: received,
        totalBytes: total.bytes,
        totalReceivedBytes: total.received,
      });
    };
    const source = async (): Promise<AsyncIterable<Uint8Array>> => {
      const blob = await downloadFile({ ...this.#target(commit), path: file.path });
      if (blob === null) throw this.#missing(file.path);
      return blob.stream();
    };
    await storeFile(repositoryFolder(this.#settings, this.#repository), path, file, source, onBytes);
  }

  async #list(commit: string): Promise<ReadonlyMap<string, RemoteFile>> {
    const files = new Map<string, RemoteFile>();
    for await (const entry of listFiles({ ...this.#target(commit), recursive: true })) {
      if (entry.type === "file") files.set(entry.path, remoteFile(entry));
    }
    return files;
  }

  #target(commit: string): { repo: { type: "model"; name: string }; revision: string } & HubRequest {
    return { repo: { type: "model", name: this.#repository.id }, revision: commit, ...this.#request() };
  }

  #request(): HubRequest {
    const { endpoint, token } = this.#settings;
    const { signal } = this.#options;
    const request = { hubUrl: endpoint, ...(token === null ? {} : { accessToken: token }) };
    if (signal === undefined) return request;
    return { ...request, fetch: (input, init) => fetch(input, { ...init, signal }) };
  }

  #missing(name: string): CheckpointError {
    const { id, revision } = this.#repository;
    return new CheckpointError(
      "MISSING_WEIGHT_FILE",
      `${id}@${revision}: expected ${name}, but the hub has no such file`,
      {
        file: name,
        expected: name,
        received: "no file",
      },
    );
  }
}

/** Bytes of all files that are downloaded in a row. */
interface Total {
  readonly bytes: number;
  received: number;
}

/** What every function of the hub's library takes. */
interface HubRequest {
  readonly hubUrl: string;
  readonly accessToken?: string;
  readonly fetch?: typeof fetch;
}

/** Reads an entry of the listing; its hashes become file names, so that they must be hashes. */
function remoteFile({ path, size, oid, lfs, xetHash }: ListFileEntry): RemoteFile {
  const etag = lfs?.oid ?? xetHash ?? oid;
  const sizeBytes = lfs?.size ?? size;
  if (etag === undefined || !/^[0-9a-f]{40,64}$/.test(etag) || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw new Error(`it lists ${JSON.stringify(path)} without a size and a hash`);
  }
  if (lfs !== undefined) return { path, sizeBytes, etag, digest: { algorithm: "sha256", hex: etag } };
  // The hash of the Xet store is one of chunks, not of the content.
  const digest = xetHash === undefined ? ({ algorithm: "git-sha1", hex: etag } as const) : null;
  return { path, sizeBytes, etag, digest };
}
