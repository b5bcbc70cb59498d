/**
 * Distrusting collectives: after each of them, do all ranks hold the same result? Off in production, where shared memory is
 * as good as a rank's own; on to find out whether a computer, a kernel or a plugin writes where it must not.
 *
 * What a rank computed wrongly *before* a collective is not found: all ranks then agree on a wrong sum.
 */
import { Arena, TENSOR_ALIGNMENT } from "../core/arena.js";
import type { CollectiveError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { i32Of, isVirtual, type Tensor } from "../core/tensor.js";
import type { AllGather, Collective, CollectiveRequest } from "./collective.js";
import { collectiveError, nameRanks } from "./failure.js";
import { payloadOf } from "./payload.js";

/** The leading `width` columns of the leading `rows` rows of an operand. */
export interface ResultExtent {
  readonly operand: Operand;
  readonly rows: number;
  readonly width: number;
}

/** What every rank holds alike once a request has been carried out; undefined for a barrier. */
export function resultOf(request: CollectiveRequest): ResultExtent | undefined {
  switch (request.kind) {
    case "allReduce":
    case "broadcast":
      return { operand: request.data, rows: 1, width: request.count };
    case "allGather": {
      const { out, rows, widths } = request;
      return { operand: out, rows, width: widths.reduce((sum, width) => sum + width, 0) };
    }
    case "barrier":
      return undefined;
  }
}

/** 32 bits of the result of a request: another number for every change of a single element. */
export function resultChecksum(request: CollectiveRequest): number {
  const result = resultOf(request);
  if (result === undefined || isVirtual(result.operand.tensor)) return 0;
  const { operand, rows, width } = result;
  const { bits } = payloadOf(operand);
  let digest = 0x811c9dc5;
  for (let row = 0; row < rows; row++) {
    const start = row * operand.columns;
    // FNV-1a over words, with a shift that brings high bits down. Each step is a bijection.
    for (let i = start; i < start + width; i++) {
      digest = Math.imul(digest ^ (bits[i] ?? 0), 16777619);
      digest ^= digest >>> 15;
    }
  }
  return digest | 0;
}

/** Checks a request that all ranks of one thread have carried out. Throws CollectiveError `COLLECTIVE_CORRUPTED`. */
export function checkSameResults(requests: readonly CollectiveRequest[], sequence: number): void {
  const [request] = requests;
  if (request === undefined) return;
  const corrupted = corruption(requests.map(resultChecksum), request, 0, sequence);
  if (corrupted !== undefined) throw corrupted;
}

/**
 * A collective whose every `execute` ends with an exchange of checksums, through `exchange`, and throws CollectiveError
 * `COLLECTIVE_CORRUPTED` on all ranks if they differ. `bind` is that of the kernels whose operands the ranks exchange.
 */
export function verifiedCollective(
  collective: Collective,
  bind: (tensor: Tensor) => Operand,
  exchange: Collective = collective,
): Collective {
  const { rank, worldSize } = collective;
  const arena = Arena.create("checksums", TENSOR_ALIGNMENT + 4 * worldSize);
  const own = arena.allocate("checksum", "i32", [1, 1]);
  const all = arena.allocate("checksums", "i32", [1, worldSize]);
  const [ownView, allView] = [i32Of(own), i32Of(all)];
  const gather: AllGather = {
    kind: "allGather",
    site: "verifyCollectives",
    data: bind(own),
    out: bind(all),
    widths: new Array<number>(worldSize).fill(1),
    rows: 1,
  };
  let sequence = 0;
  return {
    rank,
    worldSize,
    execute(request) {
      sequence++;
      collective.execute(request);
      ownView[0] = resultChecksum(request);
      exchange.execute(gather);
      const corrupted = corruption([...allView], request, rank, sequence);
      if (corrupted !== undefined) throw corrupted;
    },
    abort: () => collective.abort(),
  };
}

/** The error of ranks that hold different results; undefined if they do not. Most of them are right, if there are most. */
function corruption(
  checksums: readonly number[],
  request: CollectiveRequest,
  rank: number,
  sequence: number,
): CollectiveError | undefined {
  const [first] = checksums;
  if (checksums.every((checksum) => checksum === first)) return undefined;
  const worldSize = checksums.length;
  const count = (of: number): number => checksums.filter((checksum) => checksum === of).length;
  const usual = checksums.find((checksum) => 2 * count(checksum) > worldSize);
  const odd = [...checksums.keys()].filter((r) => checksums[r] !== usual);
  const held = checksums.map((checksum) => (checksum >>> 0).toString(16).padStart(8, "0"));
  const who = usual === undefined ? `${nameRanks(odd)} hold different ones` : `${nameRanks(odd)} did not get it`;
  const [suspect = rank] = odd;
  return collectiveError(
    "COLLECTIVE_CORRUPTED",
    { request, rank, worldSize, sequence },
    `expected the same result on every rank but ${who} (checksums ${held.join(", ")})`,
    { ranks: odd.join(","), ...(usual === undefined ? {} : { rank: suspect }) },
  );
}
