/** No element of the checkpoint is owned twice or never, but for what ranks are meant to share. */
import type { ModelConfig } from "../models/model.js";
import type { Box } from "../parallel/coverage.js";
import { cdiv, type Range } from "../parallel/partition.js";
import type { HeldCell, ParameterSplit, RankOwnership, TensorOwnership } from "../rank/ownership.js";
import { describePlace, SimulationAssertionError } from "./assertion-error.js";
import type { ShapeSimulation } from "./shape-simulation.js";
import type { Simulation } from "./simulation.js";

/** Checkpoint tensors by how they are held. */
export interface OwnedOnce {
  /** Every element by one rank. */
  readonly split: readonly string[];
  /** Some elements by several ranks: key and value heads where there are more ranks than heads, scales of cut blocks. */
  readonly shared: readonly string[];
  /** By every rank, whole: norms, biases of row-parallel layers. */
  readonly replicated: readonly string[];
}

/**
 * Checks that every element of every checkpoint tensor that the model takes is held by exactly one rank, except for
 * - parameters that a layer gives to all ranks: every rank holds them whole;
 * - key and value heads: those ranks hold them whose query heads read them, and no others;
 * - scales of blocks that a boundary cuts: the ranks on both sides hold them.
 *
 * Where a format stores a weight differently on different ranks, what those lack that store it without this tensor is
 * nobody's. Parameters whose loader hands every rank a source of its own (`isSharded`) are not seen here; `expectReassembles`
 * checks what they hold. Works without bytes. Throws SimulationAssertionError naming layer, shard id, the first such
 * element, and who holds it.
 */
export function expectOwnedOnce(simulation: Simulation | ShapeSimulation): OwnedOnce {
  const { ownership, config } = simulation;
  for (const rank of ownership.ranks) checkHeads(rank, config);
  const split: string[] = [];
  const shared: string[] = [];
  const replicated: string[] = [];
  for (const tensor of ownership.tensors) {
    if (tensor.split === "none") {
      checkHeldByAll(tensor);
      replicated.push(tensor.tensor);
    } else {
      checkHeldOnce(tensor, ownership.ranks);
      const isShared = tensor.cells.some(({ holders }) => holders.length > 1);
      (isShared ? shared : split).push(tensor.tensor);
    }
  }
  return { split, shared, replicated };
}

/** Each rank has the KV heads that its query heads read, `[h0 * kv // heads, cdiv(h1 * kv, heads))`, and no other. */
function checkHeads({ rank, queryHeads, kvHeads }: RankOwnership, { heads, kvHeads: total }: ModelConfig): void {
  if (queryHeads === null || kvHeads === null) return;
  const expected = {
    start: Math.floor((queryHeads.start * total) / heads),
    end: cdiv(queryHeads.end * total, heads),
  };
  if (kvHeads.start === expected.start && kvHeads.end === expected.end) return;
  const words = `expected KV heads ${describe(expected)} for query heads ${describe(queryHeads)}`;
  throw new SimulationAssertionError(`rank ${rank}: ${words} but received ${describe(kvHeads)}`, {
    rank,
    shardId: "k",
    expected,
    received: kvHeads,
  });
}

function checkHeldByAll(tensor: TensorOwnership): void {
  for (const cell of tensor.cells) {
    const holding = cell.holders.map(({ rank }) => rank);
    const { ranks } = tensor;
    if (holding.length !== ranks.length || !ranks.every((rank) => holding.includes(rank))) {
      throw failure(tensor, cell, "every rank");
    }
  }
}

function checkHeldOnce(tensor: TensorOwnership, ranks: readonly RankOwnership[]): void {
  for (const cell of tensor.cells) {
    const { box, holders } = cell;
    if (holders.length === 1) continue;
    // The others store the weight in another form, without this tensor.
    if (holders.length === 0 && tensor.ranks.length < ranks.length) continue;
    const twice = new Set(holders.map(({ rank }) => rank)).size !== holders.length;
    const meant = shareHeads(holders, ranks) || (tensor.blockScale && isOneBlock(box, tensor.split));
    if (holders.length === 0 || twice || !meant) throw failure(tensor, cell, "one rank");
  }
}

/** Ranks may hold the same keys or values if they hold a KV head in common. */
function shareHeads(holders: HeldCell["holders"], ranks: readonly RankOwnership[]): boolean {
  let start = 0;
  let end = Number.POSITIVE_INFINITY;
  for (const { rank, shardId } of holders) {
    const heads = ranks[rank]?.kvHeads;
    if ((shardId !== "k" && shardId !== "v") || heads === null || heads === undefined) return false;
    start = Math.max(start, heads.start);
    end = Math.min(end, heads.end);
  }
  return start < end;
}

/** A boundary lies in one block, along the dimension that is split. */
function isOneBlock(box: Box, split: ParameterSplit): boolean {
  const along = box[split === "rows" ? 0 : 1];
  return along !== undefined && along.end - along.start === 1;
}

function failure(tensor: TensorOwnership, { box, holders }: HeldCell, expected: string): SimulationAssertionError {
  const ranks = holders.map(({ rank }) => rank);
  const received = ranks.length === 0 ? "no rank" : `${ranks.length === 1 ? "rank" : "ranks"} ${ranks.join(", ")}`;
  const shardId = holders[0]?.shardId ?? null;
  const index = box.map(({ start }) => start);
  const rank = ranks.at(-1);
  return new SimulationAssertionError(
    `${tensor.tensor} (${tensor.parameter}), ${describePlace({ shardId, index })}: expected ${expected} to hold it but received ${received}`,
    {
      layer: tensor.layer,
      tensor: tensor.tensor,
      shardId,
      index,
      expected,
      received,
      ...(rank === undefined ? {} : { rank }),
    },
  );
}

function describe({ start, end }: Range): string {
  return `${start}..${end - 1}`;
}
