/** A hub on loopback, with the few requests of Hugging Face's that a download makes, and every way to misbehave. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type AddressInfo, isIP } from "node:net";

export interface StubFile {
  readonly content: Uint8Array;
  /** Whether the file is in Git LFS, and so known by its SHA-256; otherwise by Git's hash. */
  readonly lfs: boolean;
}

/** A repository at one commit. */
export interface StubCommit {
  readonly sha: string;
  readonly files: ReadonlyMap<string, StubFile>;
}

export interface StubRequest {
  readonly method: string;
  readonly path: string;
  readonly authorization: string | undefined;
}

/** Answers a request in the stub's place; false to let the stub answer. */
export type Intercept = (path: string, request: IncomingMessage, response: ServerResponse) => boolean;

export const gitHash = (content: Uint8Array): string =>
  createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex");
export const sha256 = (content: Uint8Array): string => createHash("sha256").update(content).digest("hex");

/** Serves `org/name` at the revisions in `revisions`. */
export class HubStub {
  readonly id = "org/tiny";
  /** Branch, tag or commit -> commit. */
  readonly revisions = new Map<string, StubCommit>();
  readonly requests: StubRequest[] = [];
  intercept: Intercept = () => false;
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async start(): Promise<HubStub> {
    const stub = new HubStub();
    await new Promise<void>((resolve) => stub.#server.listen(0, "127.0.0.1", resolve));
    return stub;
  }

  get endpoint(): string {
    const address = this.#server.address();
    if (!isAddressInfo(address)) throw new Error("the stub does not listen");
    return `http://${address.address}:${address.port}`;
  }

  /** Paths of the files whose content was asked for, each once, in order. */
  get downloaded(): readonly string[] {
    const paths = this.requests.map(({ path }) => path.split(/\/resolve\/[^/]+\//)[1]);
    return [...new Set(paths.filter((path) => path !== undefined))];
  }

  /** Makes a commit of `files` and points `revision` (and the commit's own hash) to it. */
  commit(files: Readonly<Record<string, string | Uint8Array>>, revision = "main"): StubCommit {
    const entries = Object.entries(files).map(([path, content]): [string, StubFile] => {
      return [path, { content: Buffer.from(content), lfs: path.endsWith(".safetensors") }];
    });
    const sha = createHash("sha1")
      .update(JSON.stringify([revision, entries]))
      .digest("hex");
    const commit = { sha, files: new Map(entries) };
    this.revisions.set(revision, commit).set(sha, commit);
    return commit;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent(new URL(request.url ?? "/", this.endpoint).pathname);
    const { authorization } = request.headers;
    this.requests.push({ method: request.method ?? "", path, authorization });
    if (this.intercept(path, request, response)) return;
    const info = path.match(`^/api/models/${this.id}/revision/(.+)$`)?.[1];
    const tree = path.match(`^/api/models/${this.id}/tree/([^/]+)$`)?.[1];
    const [, revision, name] = path.match(`^/${this.id}/resolve/([^/]+)/(.+)$`) ?? [];
    const commit = this.revisions.get(info ?? tree ?? revision ?? "");
    const file = commit?.files.get(name ?? "");
    if (commit !== undefined && info !== undefined) this.#sendInfo(response, commit);
    else if (commit !== undefined && tree !== undefined) this.#sendTree(request, response, commit);
    else if (file !== undefined) sendFile(request, response, file);
    else sendJson(response, 404, { error: "Repository or entry not found" });
  }

  #sendInfo(response: ServerResponse, { sha, files }: StubCommit): void {
    const siblings = [...files.keys()].map((rfilename) => ({ rfilename }));
    sendJson(response, 200, { _id: "1", id: this.id, sha, siblings, lastModified: "2024-01-01T00:00:00.000Z" });
  }

  /** Three entries a page, the next one linked, as the hub does with a thousand. */
  #sendTree(request: IncomingMessage, response: ServerResponse, { files }: StubCommit): void {
    const url = new URL(request.url ?? "/", this.endpoint);
    const start = Number(url.searchParams.get("cursor") ?? 0);
    const entries = [...files].map(([path, { content, lfs }]) => {
      const oid = gitHash(content);
      const size = content.length;
      return {
        type: "file",
        path,
        size,
        oid,
        ...(lfs ? { lfs: { oid: sha256(content), size, pointerSize: 130 } } : {}),
      };
    });
    url.searchParams.set("cursor", String(start + 3));
    if (start + 3 < entries.length) response.setHeader("Link", `<${url.href}>; rel="next"`);
    sendJson(response, 200, entries.slice(start, start + 3));
  }
}

export function sendJson(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
}

export function sendFile(request: IncomingMessage, response: ServerResponse, { content }: StubFile): void {
  const etag = `"${gitHash(content)}"`;
  if (request.headers.range === "bytes=0-0") {
    const headers = { etag, "content-range": `bytes 0-0/${content.length}`, "content-length": "1" };
    response.writeHead(206, headers).end(content.subarray(0, 1));
  } else {
    response.writeHead(200, { etag, "content-length": String(content.length) }).end(content);
  }
}

function isAddressInfo(address: AddressInfo | string | null): address is AddressInfo {
  return typeof address === "object" && address !== null && isIP(address.address) !== 0;
}
