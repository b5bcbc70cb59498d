/**
 * Watches ranks while they start: reports how much of the weights each has read, and notices when they get no further.
 * The counts come from shared memory, so they go on while a rank is busy reading.
 */

/** Time between two looks; a progress bar needs no more. */
const LOOK_MS = 100;

/** How far one rank is. */
export interface RankProgress {
  readonly rank: number;
  /** Bytes of weights it has read so far. */
  readonly bytes: number;
}

export interface StartWatchOptions {
  readonly worldSize: number;
  /** How long nothing may happen. */
  readonly timeoutMs: number;
  bytesLoaded(rank: number): number;
  /** Ranks that are not ready yet. */
  startingRanks(): readonly number[];
  onProgress(progress: RankProgress): void;
  /** Called once, with the ranks that are not ready, when for `timeoutMs` none read a byte and none became ready. */
  onStalled(ranks: readonly number[]): void;
}

export class StartWatch {
  readonly #options: StartWatchOptions;
  readonly #bytes: number[];
  readonly #timer: NodeJS.Timeout;
  #starting: number;
  #lastChange = performance.now();

  constructor(options: StartWatchOptions) {
    this.#options = options;
    this.#bytes = new Array<number>(options.worldSize).fill(0);
    this.#starting = options.worldSize;
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
  }

  /** Reports what is left to report and ends the watch. */
  stop(): void {
    clearInterval(this.#timer);
    this.#reportProgress();
  }

  #look(): void {
    const starting = this.#options.startingRanks();
    const advanced = this.#reportProgress();
    if (advanced || starting.length !== this.#starting) this.#lastChange = performance.now();
    this.#starting = starting.length;
    if (performance.now() - this.#lastChange < this.#options.timeoutMs) return;
    clearInterval(this.#timer);
    this.#options.onStalled(starting);
  }

  #reportProgress(): boolean {
    let advanced = false;
    for (const [rank, before] of this.#bytes.entries()) {
      const bytes = this.#options.bytesLoaded(rank);
      if (bytes === before) continue;
      advanced = true;
      this.#bytes[rank] = bytes;
      this.#options.onProgress({ rank, bytes });
    }
    return advanced;
  }
}
