/** What can go wrong between here and the hub, as errors that say what to do. */
import { HubApiError } from "@huggingface/hub";
import { CheckpointError, RequestError, ShardloomError } from "../core/errors.js";
import type { HubRepository, HubSettings } from "./hub-repository.js";

/**
 * The typed error for anything thrown while talking to the hub: RequestError `CANCELLED` after an abort; else
 * CheckpointError `HUB_UNAUTHORIZED` (401, 403), `HUB_NOT_FOUND` (404), `HUB_ERROR` (another status, or an answer that
 * is not one) or `HUB_UNREACHABLE`.
 */
export function hubError(
  cause: unknown,
  { id, revision }: HubRepository,
  { endpoint, token }: HubSettings,
  signal: AbortSignal | undefined,
): ShardloomError {
  if (cause instanceof ShardloomError) return cause;
  const subject = `${id}@${revision}`;
  if (signal?.aborted) {
    return new RequestError("CANCELLED", `the download of ${subject} was cancelled`, { file: subject }, { cause });
  }
  const fail = (code: string, message: string, status?: number): CheckpointError =>
    new CheckpointError(
      code,
      `${subject} (no local path): ${message}`,
      { file: subject, endpoint, ...(status === undefined ? {} : { status }) },
      { cause },
    );
  if (cause instanceof HubApiError) {
    const { statusCode: status } = cause;
    if (status === 401 || status === 403) {
      const advice =
        token === null
          ? "if it is private or gated, set HF_TOKEN to a token that has access"
          : "HF_TOKEN is set, but its account has no access: ask for it on the model's page";
      return fail("HUB_UNAUTHORIZED", `${endpoint} refuses access (${status}) or has no such model; ${advice}`, status);
    }
    if (status === 404) return fail("HUB_NOT_FOUND", `${endpoint} has no such model or revision (404)`, status);
    return fail("HUB_ERROR", `${endpoint} answered with status ${status}`, status);
  }
  if (isConnectionError(cause)) {
    return fail("HUB_UNREACHABLE", `cannot reach ${endpoint} (${reasonOf(cause)})`);
  }
  return fail("HUB_ERROR", `a request to ${endpoint} failed (${reasonOf(cause)})`);
}

/** Whether the hub is down or not there, so that the cache may stand in for it. */
export function isOutage(error: ShardloomError): boolean {
  const { status } = error.details;
  return (
    error.code === "HUB_UNREACHABLE" || (error.code === "HUB_ERROR" && typeof status === "number" && status >= 500)
  );
}

/** `fetch` throws a TypeError, with the system's error as its cause, when no answer arrives or the answer breaks off. */
function isConnectionError(error: unknown): boolean {
  return error instanceof TypeError && error.cause !== undefined;
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  if (cause instanceof Error) return "code" in cause && cause.message === "" ? String(cause.code) : cause.message;
  return error.message;
}
