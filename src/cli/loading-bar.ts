/** Shows on a terminal how far a download, and then loading or quantizing, has got. */
import { MultiBar, type Options, SingleBar } from "cli-progress";
import type { DownloadProgress, LoadProgress, QuantizeProgress, ShardProgress } from "../index.js";
import { formatBytes, formatMs } from "./quantities.js";

export interface LoadingBar {
  downloaded(progress: DownloadProgress): void;
  loaded(progress: LoadProgress): void;
  quantized(progress: QuantizeProgress): void;
  sharded(progress: ShardProgress): void;
  /** Removes the bars. */
  stop(): void;
}

/** Lines of a terminal that bars leave alone. */
const OTHER_LINES = 3;

/**
 * Bars on `stream`, or null where that is no terminal. While `ranks` load there is one for each of them, or one for all where
 * the terminal has fewer lines.
 */
export function createLoadingBar(stream: NodeJS.WriteStream, ranks = 1): LoadingBar | null {
  if (!stream.isTTY) return null;
  // A terminal that does not know its size says 0.
  const lines = stream.rows > 0 ? stream.rows : Number.POSITIVE_INFINITY;
  const fits = ranks <= lines - OTHER_LINES;
  return new TerminalLoadingBar(stream, fits ? ranks : 1);
}

function optionsOf(stream: NodeJS.WriteStream, format: string): Options {
  return {
    stream,
    format,
    barCompleteChar: "\u2588",
    barIncompleteChar: "\u2591",
    barsize: 30,
    hideCursor: true,
    clearOnComplete: true,
    // Signals are the command's business, which stops the bars.
    gracefulExit: false,
  };
}

const FORMAT = "{activity}  {bar}  {percentage}%  {amount}  {rate}";

class TerminalLoadingBar implements LoadingBar {
  readonly #stream: NodeJS.WriteStream;
  readonly #ranks: number;
  readonly #bar: SingleBar;
  #rankBars: RankBars | null = null;
  /** Bytes read, rank by rank, where one bar stands for all of them. */
  readonly #bytesRead: number[] = [];
  #activity = "";
  #startedAt = 0;

  constructor(stream: NodeJS.WriteStream, ranks: number) {
    this.#stream = stream;
    this.#ranks = ranks;
    this.#bar = new SingleBar(optionsOf(stream, FORMAT));
  }

  downloaded({ totalReceivedBytes, totalBytes }: DownloadProgress): void {
    this.#show("Downloading", totalReceivedBytes, totalBytes);
  }

  loaded(progress: LoadProgress): void {
    if (this.#ranks > 1) {
      this.#bar.stop();
      this.#rankBars ??= new RankBars(this.#stream, this.#ranks, progress.totalBytes);
      this.#rankBars.loaded(progress);
      return;
    }
    const { rank, bytesRead, totalBytes } = progress;
    this.#bytesRead[rank] = bytesRead;
    // What several ranks hold copies of is read more than once.
    const sum = this.#bytesRead.reduce((total, bytes) => total + bytes, 0);
    this.#show("Loading", Math.min(sum, totalBytes), totalBytes);
  }

  quantized({ bytesDone, totalBytes }: QuantizeProgress): void {
    this.#show("Quantizing", bytesDone, totalBytes);
  }

  sharded({ bytesDone, totalBytes }: ShardProgress): void {
    this.#show("Sharding", Math.min(bytesDone, totalBytes), totalBytes);
  }

  stop(): void {
    this.#bar.stop();
    this.#rankBars?.stop();
  }

  #show(activity: string, bytes: number, totalBytes: number): void {
    const now = performance.now();
    if (activity !== this.#activity || this.#bar.getTotal() !== totalBytes) {
      this.#bar.stop();
      this.#activity = activity;
      this.#startedAt = now;
      this.#bar.start(totalBytes, 0, { activity, amount: "", rate: "" });
    }
    this.#bar.update(bytes, {
      amount: `${formatBytes(bytes)} of ${formatBytes(totalBytes)}`,
      rate: rateOf(bytes, totalBytes, now - this.#startedAt),
    });
  }
}

/** A bar a rank. How much a rank reads is not known beforehand: it is taken for its part of all there is, until it reads more. */
class RankBars {
  readonly #multi: MultiBar;
  readonly #bars: readonly SingleBar[];
  readonly #startedAt = performance.now();

  constructor(stream: NodeJS.WriteStream, ranks: number, totalBytes: number) {
    const share = Math.max(1, Math.ceil(totalBytes / ranks));
    this.#multi = new MultiBar(optionsOf(stream, FORMAT));
    const width = `rank ${ranks - 1}`.length;
    this.#bars = Array.from({ length: ranks }, (_, rank) => {
      return this.#multi.create(share, 0, { activity: `rank ${rank}`.padEnd(width), amount: "", rate: "" });
    });
  }

  loaded({ rank, bytesRead }: LoadProgress): void {
    const bar = this.#bars[rank];
    if (bar === undefined) return;
    if (bytesRead > bar.getTotal()) bar.setTotal(bytesRead);
    const total = bar.getTotal();
    bar.update(bytesRead, {
      amount: `${formatBytes(bytesRead)} of ${formatBytes(total)}`,
      rate: rateOf(bytesRead, total, performance.now() - this.#startedAt),
    });
    this.#multi.update();
  }

  stop(): void {
    this.#multi.stop();
  }
}

/** Before there is something to divide by, nothing is said. */
const MIN_ELAPSED_MS = 200;

/** `1.2 GB/s, 3.4 s left` */
function rateOf(bytes: number, totalBytes: number, elapsedMs: number): string {
  if (elapsedMs < MIN_ELAPSED_MS || bytes === 0) return "";
  const perMs = bytes / elapsedMs;
  const left = bytes < totalBytes ? `, ${formatMs((totalBytes - bytes) / perMs)} left` : "";
  return `${formatBytes(perMs * 1000)}/s${left}`;
}
