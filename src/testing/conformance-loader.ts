/** Checks of checkpoints and of model loaders: what is read, what is left open, and what damaged files end in. */
import {
  cpSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { dtypeBytes } from "../core/dtype.js";
import { ShardloomError } from "../core/errors.js";
import { elementCount } from "../core/tensor.js";
import { SimulationAssertionError } from "./assertion-error.js";
import { firstDifference } from "./conformance-arithmetic.js";
import type { PluginCheck } from "./conformance-check.js";
import { loaderOf, openCheckpoint, type Subject } from "./conformance-fixture.js";
import { findLayers } from "./conformance-kinds.js";
import { type Cut, LAYER_KINDS } from "./conformance-layers.js";
import { describeError, failed, isTyped, loadRank, within } from "./conformance-load.js";
import { seededRandom } from "./turn-order.js";

export function loaderChecks(subject: Subject): readonly PluginCheck[] {
  const { path } = subject;
  const check = (what: string, run: () => Promise<void>): PluginCheck => ({ name: `${subject.name}: ${what}`, run });
  const ofTensors = [check("any range of a tensor reads as that part of the whole", () => checkRanges(subject))];
  if (path === null) return ofTensors;
  const ofFiles = [check("no file is left open", () => checkClosed(subject, path))];
  if (!subject.ownsLoader) return [...ofTensors, ...ofFiles];
  return [
    check("the description is JSON, the same every time", () => checkDescription(subject)),
    check("the loader recognizes the model and nothing else", () => checkMatches(subject, path)),
    ...ofTensors,
    ...ofFiles,
    check("a checkpoint that was closed is not read from", () => checkReadAfterClose(subject)),
    check("a file that ends early is refused", () => checkTruncated(subject, path)),
    check("a damaged file is refused or read, and nothing else", () => checkFlipped(subject, path)),
  ];
}

async function checkDescription(subject: Subject): Promise<void> {
  const preparation = await within("describe()", {}, () => subject.prepare(1));
  const { path } = preparation.ranks;
  const description = await loaderOf(preparation).describe(path);
  // The way to another thread must lose nothing either: no undefined, no class, no number that JSON has not.
  const plain: unknown = JSON.parse(JSON.stringify(description));
  compareDescriptions("expected plain JSON", plain, description);
  const again = await loaderOf(preparation).describe(path);
  compareDescriptions("described again: expected the same", description, again);
}

function compareDescriptions(what: string, expected: unknown, received: unknown): void {
  if (isDeepStrictEqual(expected, received)) return;
  const place = differingKey(expected, received, "description");
  throw new SimulationAssertionError(`${what} but ${place} differs`, { expected, received });
}

/** The path of the first key under which two values differ. */
function differingKey(a: unknown, b: unknown, path: string): string {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return path;
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  for (const key of keys) {
    const [x, y]: unknown[] = [Reflect.get(a, key), Reflect.get(b, key)];
    if (!isDeepStrictEqual(x, y) || Object.hasOwn(a, key) !== Object.hasOwn(b, key)) {
      return differingKey(x, y, `${path}.${key}`);
    }
  }
  return path;
}

async function checkMatches(subject: Subject, path: string): Promise<void> {
  const loader = loaderOf(await within("describe()", {}, () => subject.prepare(1)));
  await inTemporaryFolder(async (folder) => {
    const text = join(folder, "notes.txt");
    writeFileSync(text, "no model");
    const cases: readonly (readonly [string, boolean])[] = [
      [path, true],
      [join(folder, "nothing-is-here"), false],
      [folder, false],
      [text, false],
    ];
    for (const [candidate, expected] of cases) {
      const received = await within(`matches(${candidate})`, {}, () => loader.matches(candidate));
      if (received === expected) continue;
      throw new SimulationAssertionError(`matches(${candidate}): expected ${expected} but received ${received}`, {
        expected,
        received,
      });
    }
  });
}

/** Ranges a tensor, each of a length of its own. */
const RANGES = 12;

async function checkRanges(subject: Subject): Promise<void> {
  if (subject.ownsLoader) {
    const preparation = await within("the model", {}, () => subject.prepare(1));
    const checkpoint = await openCheckpoint(preparation);
    try {
      for (const tensor of checkpoint.tensors.values()) checkTensor("", tensor);
    } finally {
      checkpoint.close();
    }
  }
  // What layers load from is the format's own making, and depends on what they take.
  for (const cut of [
    { worldSize: 1, style: "even" },
    { worldSize: 2, style: "anywhere" },
  ] as const) {
    await checkView(subject, cut);
  }
}

async function checkView(subject: Subject, cut: Cut): Promise<void> {
  const kind = (["row", "column", "replicated"] as const).find((each) => !subject.skips(each));
  if (kind === undefined) return;
  const { preparation, layers } = await findLayers(subject, kind);
  const fitting = layers.filter((layer) => layer.fits(cut) && layer.aligned(cut));
  await within("the checkpoint as layers see it", {}, () =>
    loadRank(preparation, {
      rank: cut.worldSize - 1,
      cut,
      layers: fitting,
      whileOpen(checkpoint, shown) {
        if (shown === checkpoint) return;
        for (const tensor of shown.tensors.values()) checkTensor(", as layers see it,", tensor);
      },
    }),
  );
}

function checkTensor(seen: string, tensor: CheckpointTensor): void {
  const { name, shape, dtype } = tensor;
  const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
  const whole = new Uint8Array(sizeBytes);
  tensor.read(whole, 0);
  const random = seededRandom(sizeBytes);
  for (let i = 0; i < RANGES; i++) {
    const start = Math.floor(random() * (sizeBytes + 1));
    const length = i === 0 ? 0 : Math.floor(random() * (sizeBytes + 1 - start));
    // A frame around the range: what is read must stay inside it.
    const frame = new Uint8Array(length + 2).fill(0xa5);
    tensor.read(frame.subarray(1, length + 1), start);
    const expected = Uint8Array.from([0xa5, ...whole.subarray(start, start + length), 0xa5]);
    const byte = firstDifference(expected, frame);
    if (byte < 0) continue;
    throw new SimulationAssertionError(
      `${name}${seen} read from byte ${start} on, ${length} bytes: byte ${start + byte - 1}: expected ${expected[byte]}, as in ` +
        `the whole, but received ${frame[byte]}`,
      { tensor: name, index: [start + byte - 1], expected: expected[byte], received: frame[byte] },
    );
  }
  for (const [start, length] of [
    [sizeBytes, 1],
    [-1, 1],
    [0, sizeBytes + 1],
  ] as const) {
    const error = errorOf(() => tensor.read(new Uint8Array(length), start));
    if (error instanceof RangeError || error instanceof ShardloomError) continue;
    const received = error === null ? "no error" : describeError(error);
    throw new SimulationAssertionError(
      `${name}${seen} read from byte ${start} on, ${length} bytes: expected a RangeError, as it has ${sizeBytes}, but received ${received}`,
      { tensor: name, expected: "RangeError", received },
    );
  }
}

/** What something throws; null where it does not. */
function errorOf(run: () => void): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return null;
}

async function checkReadAfterClose(subject: Subject): Promise<void> {
  const preparation = await within("the model", {}, () => subject.prepare(1));
  const checkpoint = await openCheckpoint(preparation);
  const [tensor] = checkpoint.tensors.values();
  checkpoint.close();
  await within("a checkpoint that is closed twice", {}, () => checkpoint.close());
  if (tensor === undefined) return;
  try {
    tensor.read(new Uint8Array(1), 0);
  } catch (error) {
    if (error instanceof ShardloomError) return;
    throw failed(`${tensor.name}, read after the checkpoint was closed (a ShardloomError is right)`, error);
  }
  throw new SimulationAssertionError(
    `${tensor.name}, read after the checkpoint was closed: expected a ShardloomError but it was read`,
    { tensor: tensor.name, expected: "a ShardloomError", received: "no error" },
  );
}

async function checkClosed(subject: Subject, path: string): Promise<void> {
  const before = openFiles(path);
  const cut: Cut = { worldSize: 2, style: "even" };
  const kind = LAYER_KINDS.find((each) => !subject.skips(each)) ?? "replicated";
  const { preparation, layers } = await findLayers(subject, kind);
  const fitting = layers.filter((layer) => layer.fits(cut) && layer.aligned(cut));
  for (let rank = 0; rank < cut.worldSize; rank++) {
    await within(`rank ${rank}`, { rank }, () => loadRank(preparation, { rank, cut, layers: fitting }));
  }
  checkLeftOpen("described, opened, loaded on two ranks and closed", before, openFiles(path));
}

function checkLeftOpen(what: string, before: number, after: number): void {
  if (after <= before) return;
  throw new SimulationAssertionError(`a model ${what}: expected no file open but ${after - before} still are`, {
    expected: 0,
    received: after - before,
  });
}

/**
 * Descriptors of this process that are open on files of the model. Where the system does not say which files they are
 * open on (it is Linux that does), all descriptors; where it does not list them, none.
 */
export function openFiles(path: string): number {
  const model = realpathSync(path);
  for (const folder of ["/proc/self/fd", "/dev/fd"]) {
    let names: string[];
    try {
      names = readdirSync(folder);
    } catch {
      continue;
    }
    if (folder === "/dev/fd") return names.length;
    return names.filter((name) => targetOf(join(folder, name)).startsWith(model)).length;
  }
  return 0;
}

function targetOf(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return "";
  }
}

/** Where a file is cut: inside what can be a header, and at some places of what comes after it. */
function endsOf(sizeBytes: number): readonly number[] {
  const early = [0, 1, 3, 4, 8, 16, 24, 64, 256, 1024];
  const late = [0.25, 0.5, 0.75, 0.99].map((part) => Math.floor(sizeBytes * part));
  return [...new Set([...early, ...late, sizeBytes - 1])].filter((end) => end >= 0 && end < sizeBytes);
}

async function checkTruncated(subject: Subject, path: string): Promise<void> {
  await eachFile(path, async ({ copy, file, bytes }) => {
    for (const end of endsOf(bytes.length)) {
      writeFileSync(file, bytes.subarray(0, end));
      const where = `${basename(file)} cut off after ${end} of ${bytes.length} bytes`;
      const error = await readCopy(subject, copy);
      if (isTyped(error)) continue;
      if (error !== null) throw failed(`${where} (a ShardloomError is right)`, error);
      throw new SimulationAssertionError(`${where}: expected a ShardloomError but it was read without one`, {
        expected: "a ShardloomError",
        received: "no error",
      });
    }
    checkLeftOpen(`of which ${basename(file)} ends early`, 0, openFiles(copy));
  });
}

/** Changes of a byte, most of them where headers are. */
const FLIPS = 200;
const HEADER_BYTES = 2048;

async function checkFlipped(subject: Subject, path: string): Promise<void> {
  const random = seededRandom(11);
  await eachFile(path, async ({ copy, file, bytes }) => {
    for (let i = 0; i < FLIPS && bytes.length > 0; i++) {
      const within = i % 4 === 0 ? bytes.length : Math.min(bytes.length, HEADER_BYTES);
      const at = Math.floor(random() * within);
      const value = Math.floor(random() * 256);
      const damaged = bytes.slice();
      damaged[at] = value;
      writeFileSync(file, damaged);
      const error = await readCopy(subject, copy);
      if (error === null || isTyped(error)) continue;
      throw failed(`${basename(file)} with byte ${at} set to ${value} (a ShardloomError is right)`, error);
    }
    checkLeftOpen(`of which ${basename(file)} is damaged`, 0, openFiles(copy));
  });
}

/** Describes a copy of the model, opens it and reads every tensor. Returns what that throws, or null. */
async function readCopy(subject: Subject, copy: string): Promise<unknown> {
  let checkpoint: Checkpoint | undefined;
  try {
    const preparation = await subject.prepare(1, copy);
    checkpoint = await openCheckpoint(preparation);
    for (const tensor of checkpoint.tensors.values()) {
      tensor.read(new Uint8Array(elementCount(tensor.shape) * dtypeBytes(tensor.dtype)), 0);
    }
    return null;
  } catch (error) {
    return error;
  } finally {
    checkpoint?.close();
  }
}

interface CopiedFile {
  /** Path of the whole copy. */
  readonly copy: string;
  readonly file: string;
  /** What is in the file of the model. */
  readonly bytes: Uint8Array;
}

/** Hands out every file of a copy of the model, one after another; each is put right again after its turn. */
async function eachFile(path: string, use: (file: CopiedFile) => Promise<void>): Promise<void> {
  await inTemporaryFolder(async (folder) => {
    const copy = join(folder, basename(path));
    cpSync(path, copy, { recursive: true, dereference: true });
    const files = statSync(copy).isDirectory() ? readdirSync(copy).map((name) => join(copy, name)) : [copy];
    for (const file of files.filter((each) => statSync(each).isFile())) {
      const bytes = readFileSync(file);
      await use({ copy, file, bytes });
      writeFileSync(file, bytes);
    }
  });
}

async function inTemporaryFolder(use: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "shardloom-conformance-"));
  try {
    await use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
