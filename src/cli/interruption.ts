/**
 * What ends a command before it is done: a signal, or a reader of its results that goes away. The command hears of it
 * through an AbortSignal and closes what it opened; a second signal ends the process at once.
 */
import { EXIT_OK, SIGNAL_EXIT_CODES } from "./exit-codes.js";

type SignalName = keyof typeof SIGNAL_EXIT_CODES;

export class Interruption {
  readonly #controller = new AbortController();
  readonly #listeners = new Map<SignalName, () => void>();
  #exitCode: number | null = null;
  #takeSigint: (() => boolean) | null = null;

  /** Aborted when the command is to end. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What the process is to exit with; null while nothing interrupts it. */
  get exitCode(): number | null {
    return this.#exitCode;
  }

  /** Listens for signals until `release`. */
  listen(): void {
    for (const name of ["SIGINT", "SIGTERM"] as const) {
      const listener = (): void => this.receive(name);
      this.#listeners.set(name, listener);
      process.on(name, listener);
    }
  }

  release(): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener);
    this.#listeners.clear();
  }

  /** `take` hears of SIGINT first, and returns true when it was meant for it; null for nobody. */
  setSigintTaker(take: (() => boolean) | null): void {
    this.#takeSigint = take;
  }

  /** A signal has arrived, or Ctrl-C on a terminal that does not turn it into one. */
  receive(name: SignalName): void {
    if (name === "SIGINT" && this.#exitCode === null && this.#takeSigint?.() === true) return;
    if (this.#exitCode !== null) process.exit(SIGNAL_EXIT_CODES[name]);
    this.#interrupt(SIGNAL_EXIT_CODES[name]);
  }

  /** Nobody reads the results any more: no reason to complain, nor to go on. */
  outputClosed(): void {
    if (this.#exitCode === null) this.#interrupt(EXIT_OK);
  }

  #interrupt(exitCode: number): void {
    this.#exitCode = exitCode;
    this.#controller.abort();
  }
}
