/**
 * A tensor-parallel group in one thread: the ranks of a model, loaded, that take turns. What is computed is what worker
 * threads would compute, bit for bit.
 */
import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { invariant, OptionError, ShardloomError } from "../core/errors.js";
import { createLogger } from "../core/logger.js";
import { createEngine, type Engine, prepareText } from "../engine/engine.js";
import { checkLength, checkTokenIds } from "../engine/prompt.js";
import type { ModelConfig } from "../models/model.js";
import { selectFamily } from "../models/registry.js";
import type { Split } from "../parallel/partition.js";
import { expectedWeights } from "../rank/expected-weights.js";
import type { GroupOwnership } from "../rank/ownership.js";
import { summarize } from "../rank/token-choice.js";
import type { Disagreement } from "./agreement.js";
import type { CollectiveTrace } from "./collective-trace.js";
import type { IndexerCall, OffsetComputation } from "./placement-recorder.js";
import type { Preparation } from "./preparation.js";
import { SequenceDriver } from "./sequence-driver.js";
import type { SimulatedRank } from "./simulated-rank.js";
import { WatchedRanks, type WatchedRanksOptions } from "./watched-ranks.js";

/** Greedy tokens, and the logits that each of them was chosen from, `[vocabularySize]`. */
export interface GeneratedTokens {
  readonly tokenIds: readonly number[];
  readonly logits: readonly Float32Array[];
}

export class Simulation {
  readonly worldSize: number;
  readonly config: ModelConfig;
  /** In rank order. */
  readonly ranks: readonly SimulatedRank[];
  readonly #preparation: Preparation;
  readonly #group: WatchedRanks;
  readonly #loadUnsharded: () => Promise<Simulation>;
  readonly #driver: { current: SequenceDriver | null };
  #engine: Engine | undefined;
  #unsharded: Promise<Simulation> | undefined;
  #closing: Promise<void> | undefined;

  private constructor(
    preparation: Preparation,
    group: WatchedRanks,
    driver: { current: SequenceDriver | null },
    loadUnsharded: () => Promise<Simulation>,
  ) {
    this.worldSize = preparation.ranks.worldSize;
    this.config = group.executor.config;
    this.ranks = group.ranks;
    this.#preparation = preparation;
    this.#group = group;
    this.#driver = driver;
    this.#loadUnsharded = loadUnsharded;
  }

  /** Use `simulate`. */
  static async load(
    preparation: Preparation,
    options: Omit<WatchedRanksOptions, "onLogits">,
    loadUnsharded: () => Promise<Simulation>,
  ): Promise<Simulation> {
    const driver: { current: SequenceDriver | null } = { current: null };
    const group = await WatchedRanks.load(preparation, {
      ...options,
      onLogits: (first, rows, logits) => driver.current?.accept(first, rows, logits),
    });
    return new Simulation(preparation, group, driver, loadUnsharded);
  }

  /** Who holds which part of which checkpoint tensor, and how many bytes that takes. */
  get ownership(): GroupOwnership {
    return this.#group.ownership;
  }

  /** Longest sequence. */
  get maxModelLength(): number {
    return this.#group.executor.maxModelLength;
  }

  /** The vocabulary ids whose logits each rank computes. */
  get vocabulary(): Split {
    const [runner] = this.#group.executor.runners;
    return runner?.loaded.model.vocabulary ?? [];
  }

  /** Questions to shard indexers while the ranks were loaded, and their answers, in order. */
  get indexerCalls(): readonly IndexerCall[] {
    return this.#group.placements.indexerCalls;
  }

  /** Every time that the original offsets of a layer were computed. */
  get offsetComputations(): readonly OffsetComputation[] {
    return this.#group.placements.offsetComputations;
  }

  /** Collectives of every step so far. */
  get trace(): CollectiveTrace {
    return this.#group.trace;
  }

  /** Places where ranks held different bits after a collective; the first of each, up to 16. */
  get disagreements(): readonly Disagreement[] {
    return this.#group.agreement.disagreements;
  }

  /** Collectives after which the ranks were compared. */
  get comparedCollectives(): number {
    return this.#group.agreement.compared;
  }

  /**
   * An engine over these ranks: sampling, several requests at once, text where the model has a tokenizer. It is closed
   * with the simulation. While it has requests, nothing else can be run; once it has run one, `decode` needs a new prompt.
   */
  get engine(): Engine {
    this.#checkOpen();
    const { executor } = this.#group;
    this.#engine ??= createEngine({
      executor: {
        worldSize: executor.worldSize,
        config: executor.config,
        steps: executor.steps,
        blockSize: executor.blockSize,
        blocks: executor.blocks,
        maxModelLength: executor.maxModelLength,
        reports: executor.reports,
        execute: () => {
          // The engine's sequences take the blocks that the direct one had.
          this.#driver.current = null;
          return executor.execute();
        },
        close: () => executor.close(),
      },
      text: prepareText(this.#preparation.ranks.description, executor.config),
      logger: createLogger("silent"),
    });
    return this.#engine;
  }

  /** Starts a sequence; returns the logits after its last token, `[vocabularySize]`. */
  prefill(promptTokenIds: readonly number[]): Float32Array {
    return last(this.#start(promptTokenIds, false));
  }

  /** Starts a sequence; returns the logits after every one of its tokens. */
  logits(promptTokenIds: readonly number[]): readonly Float32Array[] {
    return this.#start(promptTokenIds, true);
  }

  /**
   * Goes on with the sequence that `prefill` or `logits` started: appends a token and returns the logits after it. Throws
   * OptionError `INVALID_OPTION` when there is none.
   */
  decode(tokenId: number): Float32Array {
    this.#checkIdle();
    const driver = this.#driver.current;
    if (driver === null) {
      throw new OptionError("INVALID_OPTION", "expected a prefill before decode but there was none", {
        option: "tokenId",
        expected: "prefill",
      });
    }
    const [id = 0] = checkTokenIds([tokenId], this.config.vocabularySize, "tokenId");
    const most = this.#group.executor.maxModelLength;
    checkLength(driver.length + 1, most, most);
    return last(driver.append([id], false));
  }

  /** Greedy continuation of a prompt by `count` tokens, whatever they are: no token ends it. */
  generate(promptTokenIds: readonly number[], count: number): GeneratedTokens {
    const tokenIds: number[] = [];
    const logits: Float32Array[] = [];
    for (let i = 0; i < count; i++) {
      const previous = tokenIds.at(-1);
      const row = previous === undefined ? this.prefill(promptTokenIds) : this.decode(previous);
      logits.push(row);
      tokenIds.push(summarize(row).maxId);
    }
    return { tokenIds, logits };
  }

  /** The same model on one rank, loaded when first asked for and closed with this simulation. */
  unsharded(): Promise<Simulation> {
    this.#checkOpen();
    this.#unsharded ??= this.#loadUnsharded();
    return this.#unsharded;
  }

  /** The checkpoint that the ranks were loaded from, opened anew: whole tensors. Whoever opens it closes it. */
  openCheckpoint(): Promise<Checkpoint> {
    this.#checkOpen();
    const { ranks, registries, seed } = this.#preparation;
    const { config } = ranks.description;
    const expected = expectedWeights(selectFamily(config), config, seed);
    return registries.modelLoaders.select(ranks.path, ranks.loadFormat).open(ranks.path, expected);
  }

  /** Ends the engine's requests and gives all memory back. May be called again. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#engine?.close();
    this.#driver.current = null;
    this.#group.release();
    await (await this.#unsharded?.catch(() => undefined))?.close();
  }

  #start(promptTokenIds: readonly number[], all: boolean): Float32Array[] {
    this.#checkIdle();
    const ids = checkTokenIds(promptTokenIds, this.config.vocabularySize);
    const { executor } = this.#group;
    checkLength(ids.length, executor.maxModelLength, executor.maxModelLength);
    const driver = new SequenceDriver(executor, this.config.vocabularySize);
    this.#driver.current = driver;
    return driver.append(ids, all);
  }

  #checkIdle(): void {
    this.#checkOpen();
    const { running, waiting } = this.#engine?.stats ?? { running: 0, waiting: 0 };
    if (running + waiting === 0) return;
    throw new ShardloomError(
      "SIMULATION_BUSY",
      `expected an idle engine but it has ${running + waiting} requests in flight`,
      { received: running + waiting },
    );
  }

  #checkOpen(): void {
    if (this.#closing === undefined) return;
    throw new ShardloomError("SIMULATION_CLOSED", "expected an open simulation but it was closed");
  }
}

function last(logits: readonly Float32Array[]): Float32Array {
  const row = logits.at(-1);
  invariant(row !== undefined, "a step that was asked for logits made none");
  return row;
}
