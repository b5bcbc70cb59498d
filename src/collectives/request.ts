/**
 * What ranks compare before they trust each other: every request as five words. Equal words mean that the ranks ask for
 * the same thing for the same module, but for the third, a rank's own width, in which they may differ; a checksum covers
 * everybody's. Modules are compared by a digest of their names.
 */
import { InternalError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import type { AllGather, CollectiveRequest } from "./collective.js";

/** Offsets of the words of a request. */
export const REQUEST_WORD = { kind: 0, size: 1, width: 2, checksum: 3, site: 4 } as const;

const kindCodes = { allReduce: 1, allGather: 2, broadcast: 3, barrier: 4 } as const;
const kindNames = ["nothing more", "allReduce", "allGather", "broadcast", "barrier"];
const TYPE_SHIFT = 8;
const typeNames = ["f32", "i32"];

function typeCode(operand: Operand): number {
  return operand.tensor.dtype === "i32" ? 1 << TYPE_SHIFT : 0;
}

/** A positive 30-bit digest of the widths of an all-gather: a small integer on every platform. */
export function widthsChecksum(widths: readonly number[]): number {
  let digest = 0x811c9dc5;
  for (const width of widths) digest = Math.imul(digest ^ width, 16777619) ^ (digest >>> 15);
  return digest & 0x3fffffff;
}

const siteDigests = new Map<string, number>();

/**
 * A positive 30-bit digest of the module that asks, 0 for none. Digested once for each name: a model has a few hundred,
 * two of which meet in one digest with a probability of 1 to some 10,000; their swapping alone would then go unnoticed.
 */
export function siteDigest(site: string | undefined): number {
  if (site === undefined || site === "") return 0;
  let digest = siteDigests.get(site);
  if (digest === undefined) {
    digest = 0x811c9dc5;
    for (let i = 0; i < site.length; i++) digest = Math.imul(digest ^ site.charCodeAt(i), 16777619) ^ (digest >>> 15);
    digest = digest & 0x3fffffff || 1;
    siteDigests.set(site, digest);
  }
  return digest;
}

/** Writes the words of `rank`'s request at `words[at]`. */
export function writeRequest(words: Int32Array, at: number, request: CollectiveRequest, rank: number): void {
  let kind: number = kindCodes[request.kind];
  let size = 0;
  let width = 0;
  let checksum = 0;
  if (request.kind === "allReduce") {
    size = request.count;
  } else if (request.kind === "allGather") {
    kind |= typeCode(request.data);
    size = request.rows;
    width = request.widths[rank] ?? 0;
    checksum = widthsChecksum(request.widths);
  } else if (request.kind === "broadcast") {
    kind |= typeCode(request.data);
    size = request.count;
    checksum = request.root;
  }
  words[at + REQUEST_WORD.kind] = kind;
  words[at + REQUEST_WORD.size] = size;
  words[at + REQUEST_WORD.width] = width;
  words[at + REQUEST_WORD.checksum] = checksum;
  words[at + REQUEST_WORD.site] = siteDigest(request.site);
}

/** True if the requests written at two places ask for the same thing, for the same module. */
export function sameRequest(words: Int32Array, a: number, b: number): boolean {
  return (
    words[a + REQUEST_WORD.kind] === words[b + REQUEST_WORD.kind] &&
    words[a + REQUEST_WORD.size] === words[b + REQUEST_WORD.size] &&
    words[a + REQUEST_WORD.checksum] === words[b + REQUEST_WORD.checksum] &&
    words[a + REQUEST_WORD.site] === words[b + REQUEST_WORD.site]
  );
}

/** The request written at `words[at]`, as messages show it. */
export function describeRequest(words: Int32Array, at: number): string {
  const code = words[at + REQUEST_WORD.kind] ?? 0;
  const size = words[at + REQUEST_WORD.size] ?? 0;
  const width = words[at + REQUEST_WORD.width] ?? 0;
  const checksum = words[at + REQUEST_WORD.checksum] ?? 0;
  const kind = kindNames[code & ((1 << TYPE_SHIFT) - 1)] ?? `kind ${code}`;
  const type = typeNames[code >>> TYPE_SHIFT] ?? "?";
  if (kind === "allReduce") return `allReduce of ${size} f32`;
  if (kind === "broadcast") return `broadcast of ${size} ${type} from rank ${checksum}`;
  if (kind === "allGather") {
    return `allGather of ${size} rows, ${width} columns of its own, ${type} (widths #${checksum.toString(16)})`;
  }
  return kind;
}

/** Who asks, after what is asked for, in messages. */
export function forSite(site: string): string {
  return site === "" ? "" : ` for ${site}`;
}

/** Checks that a request fits its operands. Throws InternalError: requests are made by layers, not by users. */
export function checkRequest(request: CollectiveRequest, worldSize: number): void {
  switch (request.kind) {
    case "allReduce":
      checkCount(request.kind, request.data, request.count);
      if (request.data.tensor.dtype !== "f32") refuse(request.kind, "f32", request.data.tensor.dtype);
      break;
    case "broadcast":
      checkCount(request.kind, request.data, request.count);
      checkType(request.kind, request.data);
      if (!isIndex(request.root, worldSize)) refuse(request.kind, `a root below ${worldSize}`, request.root);
      break;
    case "allGather":
      checkAllGather(request, worldSize);
      break;
    default:
  }
}

function checkAllGather(request: AllGather, worldSize: number): void {
  const { kind, data, out, widths, rows } = request;
  checkType(kind, data);
  if (out.tensor.dtype !== data.tensor.dtype) refuse(kind, `out in ${data.tensor.dtype}`, out.tensor.dtype);
  if (widths.length !== worldSize) refuse(kind, `${worldSize} widths`, widths.length);
  let total = 0;
  for (const width of widths) {
    if (!isIndex(width, out.columns + 1)) refuse(kind, `widths up to ${out.columns}`, width);
    total += width;
  }
  if (total > out.columns) refuse(kind, `widths that sum to at most ${out.columns}`, total);
  if (!isIndex(rows, out.rows + 1)) refuse(kind, `at most ${out.rows} rows`, rows);
}

/** Checks the part of an all-gather that only one rank contributes. Throws InternalError. */
export function checkContribution(request: AllGather, rank: number): void {
  const width = request.widths[rank] ?? 0;
  const { kind, data, rows } = request;
  if (width > data.columns) refuse(kind, `a width of at most ${data.columns}`, width);
  if (width > 0 && rows > data.rows) refuse(kind, `at most ${data.rows} rows of data`, rows);
}

function checkCount(kind: string, data: Operand, count: number): void {
  const most = data.rows * data.columns;
  if (!isIndex(count, most + 1)) refuse(kind, `a count of at most ${most}`, count);
}

function checkType(kind: string, data: Operand): void {
  const { dtype } = data.tensor;
  if (dtype !== "f32" && dtype !== "i32") refuse(kind, "f32 or i32", dtype);
}

function isIndex(value: number, end: number): boolean {
  return Number.isInteger(value) && value >= 0 && value < end;
}

function refuse(kind: string, expected: string, received: string | number): never {
  throw new InternalError(`${kind}: expected ${expected} but received ${received}`, { expected, received });
}
