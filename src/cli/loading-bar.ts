/** Shows on a terminal how far a download, and then loading or quantizing, has got. */
import { SingleBar } from "cli-progress";
import type { DownloadProgress, LoadProgress, QuantizeProgress, ShardProgress } from "../index.js";
import { formatBytes } from "./quantities.js";

export interface LoadingBar {
  downloaded(progress: DownloadProgress): void;
  loaded(progress: LoadProgress): void;
  quantized(progress: QuantizeProgress): void;
  sharded(progress: ShardProgress): void;
  /** Removes the bar. */
  stop(): void;
}

/** A bar on `stream`, or null where that is no terminal. */
export function createLoadingBar(stream: NodeJS.WriteStream): LoadingBar | null {
  return stream.isTTY ? new TerminalLoadingBar(stream) : null;
}

class TerminalLoadingBar implements LoadingBar {
  readonly #bar: SingleBar;
  /** Bytes read, rank by rank: one bar stands for all of them. */
  readonly #bytesRead: number[] = [];
  #activity = "";
  #startedAt = 0;

  constructor(stream: NodeJS.WriteStream) {
    this.#bar = new SingleBar({
      stream,
      format: "{activity}  {bar}  {percentage}%  {amount}  {rate}",
      barCompleteChar: "\u2588",
      barIncompleteChar: "\u2591",
      barsize: 30,
      hideCursor: true,
      clearOnComplete: true,
      // Signals are the command's business, which stops the bar.
      gracefulExit: false,
    });
  }

  downloaded({ totalReceivedBytes, totalBytes }: DownloadProgress): void {
    this.#show("Downloading", totalReceivedBytes, totalBytes);
  }

  loaded({ rank, bytesRead, totalBytes }: LoadProgress): void {
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
  }

  #show(activity: string, bytes: number, totalBytes: number): void {
    const now = performance.now();
    if (activity !== this.#activity || this.#bar.getTotal() !== totalBytes) {
      this.#bar.stop();
      this.#activity = activity;
      this.#startedAt = now;
      this.#bar.start(totalBytes, 0, { activity, amount: "", rate: "" });
    }
    const seconds = (now - this.#startedAt) / 1000;
    this.#bar.update(bytes, {
      amount: `${formatBytes(bytes)} of ${formatBytes(totalBytes)}`,
      rate: seconds > 0.2 ? `${formatBytes(bytes / seconds)}/s` : "",
    });
  }
}
