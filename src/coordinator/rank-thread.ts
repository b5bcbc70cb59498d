/**
 * One rank's worker thread, from its start to its end. Everything that can happen to it comes out as one of four calls
 * of its observer, in this order: ready, then stopped or failed (once, or neither), and in any case exited, last.
 */
import { MessageChannel, type MessagePort, type ResourceLimits, Worker } from "node:worker_threads";
import { type Remote, wrap } from "comlink";
import { fromTransferable, invariant, RankError, type ShardloomError, toTransferable } from "../core/errors.js";
import type { RankReport } from "../rank/model-runner.js";
import type { Outcome, RankInit, RankService, RankWorkerData } from "../rank/rank-service.js";
import { rankExited } from "./rank-errors.js";

/** What runs in the thread of a rank. */
export interface ThreadEntry {
  /** The file it begins with; it exposes a RankService. */
  readonly url: URL;
  /** What that file gets besides the control port. Plain data. */
  readonly data?: unknown;
  readonly resourceLimits?: ResourceLimits;
}

export interface RankThreadObserver {
  /** The rank is loaded and can serve. */
  ready(report: RankReport): void;
  /** The rank left its step loop as it was told to. */
  stopped(rank: number): void;
  /** The rank failed: it reported an error, or its thread ended without being told to. */
  failed(error: ShardloomError, rank: number): void;
  /** Nothing of the thread is left. */
  exited(rank: number): void;
}

/**
 *     starting -> ready -> serving -> stopped
 *         \________\__________\____-> failed
 *
 * From each of them `terminate`, or the thread's own end, leads to "gone".
 */
type State = "starting" | "ready" | "serving" | "stopped" | "failed" | "gone";

export class RankThread {
  readonly rank: number;
  readonly #observer: RankThreadObserver;
  readonly #worker: Worker;
  /** A port of its own: what a plugin does with the thread's parentPort cannot get in the way. */
  readonly #control: MessagePort;
  readonly #service: Remote<RankService>;
  #state: State = "starting";
  /** Whether the end of the thread is our doing. */
  #terminating = false;
  /** What the thread died of, where it died of an uncaught exception; its exit follows. */
  #uncaught: unknown;
  /** The thread and its port end apart, and both can hold the process. */
  #threadEnded = false;
  #controlClosed = false;

  /** Starts the thread. Throws RankError `RANK_START_FAILED` when the system refuses it. */
  constructor(rank: number, entry: ThreadEntry, observer: RankThreadObserver) {
    this.rank = rank;
    this.#observer = observer;
    const { port1, port2 } = new MessageChannel();
    this.#control = port1;
    this.#worker = startWorker(rank, entry, port2);
    this.#worker.on("error", (error) => {
      this.#uncaught = error;
    });
    this.#worker.on("exit", (exitCode) => this.#exited(exitCode));
    this.#control.on("close", () => {
      this.#controlClosed = true;
      this.#checkGone();
    });
    this.#service = wrap<RankService>(this.#control);
  }

  get state(): State {
    return this.#state;
  }

  /** Has the rank load; `ready` or `failed` follows. */
  load(init: RankInit): void {
    this.#settle(this.#service.load(init), (report) => {
      this.#state = "ready";
      this.#observer.ready(report);
    });
  }

  /** Has the rank serve steps; `stopped` or `failed` follows, but not before it is told to stop by the step channel. */
  serve(): void {
    invariant(this.#state === "ready", `a rank cannot serve when it is ${this.#state}`, { rank: this.rank });
    this.#state = "serving";
    this.#settle(this.#service.serve(), () => {
      this.#state = "stopped";
      this.#observer.stopped(this.rank);
    });
  }

  /** Whether the thread, as long as it lives, keeps the process alive. It does at first. */
  holdProcess(hold: boolean): void {
    if (this.#state === "gone") return;
    if (hold) {
      this.#worker.ref();
      this.#control.ref();
    } else {
      this.#worker.unref();
      this.#control.unref();
    }
  }

  /**
   * Ends the thread wherever it is: JavaScript is interrupted, a wait of Atomics too; native code first has to return.
   * `exited` follows.
   */
  terminate(): void {
    if (this.#state === "gone") return;
    this.#terminating = true;
    void this.#worker.terminate();
  }

  #settle<Value>(call: Promise<Outcome<Value>>, succeed: (value: Value) => void): void {
    const settle = (outcome: Outcome<Value>): void => {
      if (this.#state === "failed" || this.#state === "gone") return;
      if (outcome.ok) succeed(outcome.value);
      else this.#fail(fromTransferable(outcome.error));
    };
    // The service throws nothing, but Comlink may: an argument or a result that cannot be cloned.
    call.then(settle, (error: unknown) => settle({ ok: false, error: toTransferable(error) }));
  }

  #fail(error: ShardloomError): void {
    this.#state = "failed";
    this.#observer.failed(error, this.rank);
  }

  #exited(exitCode: number): void {
    this.#threadEnded = true;
    this.#control.close();
    const unexpected = !this.#terminating && this.#state !== "failed";
    if (unexpected) this.#fail(rankExited(this.rank, exitCode, this.#uncaught));
    this.#checkGone();
  }

  #checkGone(): void {
    if (!this.#threadEnded || !this.#controlClosed) return;
    this.#state = "gone";
    this.#observer.exited(this.rank);
  }
}

function startWorker(rank: number, { url, data, resourceLimits }: ThreadEntry, control: MessagePort): Worker {
  const workerData: RankWorkerData = { control, data };
  try {
    return new Worker(url, {
      name: `shardloom rank ${rank}`,
      workerData,
      transferList: [control],
      ...(resourceLimits === undefined ? {} : { resourceLimits }),
    });
  } catch (error) {
    control.close();
    const message = error instanceof Error ? error.message : String(error);
    throw new RankError("RANK_START_FAILED", `cannot start rank ${rank}: ${message}`, { rank }, { cause: error });
  }
}
