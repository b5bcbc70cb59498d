/**
 * One rank's worker thread, from when it is told what to load to its end. Everything that can happen to it comes out as one of
 * four calls of its observer, in this order: ready, then stopped or failed (once, or neither), and in any case exited, last.
 */
import type { MessagePort, Worker } from "node:worker_threads";
import { type Remote, wrap } from "comlink";
import { fromTransferable, invariant, type ShardloomError, toTransferable } from "../core/errors.js";
import type { RankReport } from "../rank/model-runner.js";
import type { Outcome, RankInit, RankService } from "../rank/rank-service.js";
import { rankExited } from "./rank-errors.js";
import type { StartedThread } from "./started-thread.js";

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
  readonly #started: StartedThread;
  readonly #worker: Worker;
  readonly #control: MessagePort;
  readonly #service: Remote<RankService>;
  #state: State = "starting";
  /** Whether the end of the thread is our doing. */
  #terminating = false;

  /** Takes a started thread over. What has happened to it already comes out later. */
  constructor(started: StartedThread, observer: RankThreadObserver) {
    this.rank = started.rank;
    this.#started = started;
    this.#observer = observer;
    this.#worker = started.worker;
    this.#control = started.control;
    this.#service = wrap<RankService>(this.#control);
    started.onExit((exitCode) => this.#exited(exitCode));
    started.onGone(() => {
      this.#state = "gone";
      this.#observer.exited(this.rank);
    });
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
    const unexpected = !this.#terminating && this.#state !== "failed";
    if (unexpected) this.#fail(rankExited(this.rank, exitCode, this.#started.uncaught));
  }
}
