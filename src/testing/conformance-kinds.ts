/** Checks of the layers of each kind: what they hold and what they compute, whole and in shards. */
import { dequantize } from "../kernels/execution-format.js";
import { SimulationAssertionError } from "./assertion-error.js";
import { checkApply, checkEmbed } from "./conformance-arithmetic.js";
import type { PluginCheck } from "./conformance-check.js";
import { openCheckpoint, type Subject } from "./conformance-fixture.js";
import { CUTS, type Cut, LAYER_KINDS, type LayerKind, type LayerSpec, layersOf, WHOLE } from "./conformance-layers.js";
import {
  describeCut,
  isTyped,
  type LoadedRank,
  loadLocated,
  loadRanks,
  modulesOf,
  within,
} from "./conformance-load.js";
import {
  compareShard,
  expectedValues,
  sameBits,
  sameValue,
  type WholeValues,
  wholeValues,
} from "./conformance-values.js";
import type { Preparation } from "./preparation.js";

/** A few are enough for what does not depend on where a cut lies. */
const APPLIED_CUTS = CUTS.slice(0, 5);
/** What is whole on every rank is no other for another number of ranks. */
const REPLICATED_CUTS = [CUTS[1], CUTS[2]].filter((cut) => cut !== undefined);

export function kindChecks(subject: Subject): readonly PluginCheck[] {
  return LAYER_KINDS.filter((kind) => !subject.skips(kind)).flatMap((kind) => {
    const check = (what: string, run: () => Promise<void>): PluginCheck => {
      return { name: `${subject.name}: ${kind} layers ${what}`, run };
    };
    const values = check("hold the expected values", () => checkExpected(subject, kind));
    const others = [
      check("are loaded, processed and applied on one rank", () => checkWhole(subject, kind)),
      check(kind === "replicated" ? "are the same on 2 and 3 ranks" : "are slices of the whole on 2 to 8 ranks", () =>
        checkShards(subject, kind),
      ),
      check("are applied in shards as the whole is", () => checkShardedApply(subject, kind)),
    ];
    return subject.fixture.expected === undefined ? others : [values, ...others];
  });
}

/** A kind of layers of a model that has them. */
interface Kind {
  readonly preparation: Preparation;
  readonly layers: readonly LayerSpec[];
}

/** Throws SimulationAssertionError where the model has no matrix for the kind: a check of nothing proves nothing. */
export async function findLayers(subject: Subject, kind: LayerKind): Promise<Kind> {
  return within(`the model of ${subject.name}`, {}, async () => {
    // How many ranks there are, layers are told when they are built.
    const preparation = await subject.prepare(1);
    const checkpoint = await openCheckpoint(preparation);
    const layers = layersOf(preparation, checkpoint, subject.cutsAt, kind);
    checkpoint.close();
    if (layers.length > 0) return { preparation, layers };
    throw new SimulationAssertionError(
      `the model of ${subject.name}: expected a matrix for ${kind} layers but received none; name the kind in "skip" if that is meant`,
      { expected: `a matrix for ${kind} layers`, received: "none" },
    );
  });
}

async function loadWhole({ preparation, layers }: Kind): Promise<readonly LoadedRank[]> {
  return loadRanks(preparation, { cut: WHOLE, layers });
}

async function checkExpected(subject: Subject, kind: LayerKind): Promise<void> {
  const { expected = () => undefined } = subject.fixture;
  const found = await findLayers(subject, kind);
  const ranks = await loadWhole(found);
  let compared = 0;
  for (const [i, layer] of found.layers.entries()) {
    const values = expectedValues(layer, expected);
    compared += values.size;
    for (const module of modulesOf(ranks, i)) await compareShard("one rank", module, values, sameValue);
  }
  // Embeddings are plain in most formats, and no oracle has them then.
  if (compared > 0 || kind === "embedding") return;
  throw new SimulationAssertionError(
    `expected values for the matrices of ${kind} layers but the fixture's "expected" knows none of them`,
    { expected: "values", received: "none" },
  );
}

async function checkWhole(subject: Subject, kind: LayerKind): Promise<void> {
  const found = await findLayers(subject, kind);
  const ranks = await loadWhole(found);
  await checkLayers("1 rank", subject, found.layers, ranks, await wholesOf(found.layers, ranks));
}

async function wholesOf(layers: readonly LayerSpec[], ranks: readonly LoadedRank[]): Promise<readonly WholeValues[]> {
  const wholes: WholeValues[] = [];
  for (const i of layers.keys()) {
    const [module] = modulesOf(ranks, i);
    wholes.push(module === undefined ? new Map() : await wholeValues(module));
  }
  return wholes;
}

async function checkLayers(
  where: string,
  { fixture }: Subject,
  layers: readonly LayerSpec[],
  ranks: readonly LoadedRank[],
  wholes: readonly WholeValues[],
): Promise<void> {
  for (const [i, layer] of layers.entries()) {
    checkTiling(where, modulesOf(ranks, i));
    await checkApply(`${where}, ${layer.kind} ${layer.prefix}`, ranks, i, fixture.applyTolerance);
    const table = wholes[i]?.get(layer.prefix);
    if (layer.kind === "embedding" && table !== undefined) await checkEmbed(where, ranks, i, table);
  }
}

/** Execution weights come in the order of rows, one after another, and each of them has rows. */
function checkTiling(where: string, modules: ReturnType<typeof modulesOf>): void {
  for (const { layer, method } of modules) {
    let row = 0;
    for (const { firstRow, weight } of method.executionWeights()) {
      const rows = dequantize(weight).length / Math.max(1, layer.inputs.end - layer.inputs.start);
      if (firstRow === row && rows > 0) {
        row += rows;
        continue;
      }
      throw new SimulationAssertionError(
        `${where}: ${layer.prefix}, rank ${layer.rank}: expected an execution weight from row ${row} on but received ` +
          `${rows} rows from row ${firstRow} on`,
        { layer: layer.prefix, rank: layer.rank, expected: row, received: firstRow },
      );
    }
  }
}

async function checkShards(subject: Subject, kind: LayerKind): Promise<void> {
  let served = 0;
  await inCuts(subject, kind, kind === "replicated" ? REPLICATED_CUTS : CUTS, async ({ cut, ranks, wholes }) => {
    for (const rank of ranks) {
      for (const [i, module] of rank?.linears.entries() ?? []) {
        await compareShard(describeCut(cut), module, wholes[i] ?? new Map(), sameBits);
        served++;
      }
    }
  });
  if (served > 0) return;
  throw new SimulationAssertionError(`expected ${kind} layers that several ranks can share but received none`, {
    expected: "a cut",
    received: "none",
  });
}

async function checkShardedApply(subject: Subject, kind: LayerKind): Promise<void> {
  await inCuts(
    subject,
    kind,
    kind === "replicated" ? REPLICATED_CUTS : APPLIED_CUTS,
    async ({ cut, layers, ranks, wholes }) => {
      const loaded = ranks.filter((rank) => rank !== null);
      if (loaded.length === ranks.length) await checkLayers(describeCut(cut), subject, layers, loaded, wholes);
    },
  );
}

/** Layers on all ranks of a cut. */
interface InCut {
  readonly cut: Cut;
  readonly layers: readonly LayerSpec[];
  /** Null for a rank that was refused, as it may be. */
  readonly ranks: readonly (LoadedRank | null)[];
  /** Values of the unsharded layers. */
  readonly wholes: readonly WholeValues[];
}

/** Loads all layers of a kind in every cut that they fit; each by itself where the format may refuse it. */
async function inCuts(
  subject: Subject,
  kind: LayerKind,
  cuts: readonly Cut[],
  use: (inCut: InCut) => Promise<void>,
): Promise<void> {
  const found = await findLayers(subject, kind);
  const wholes = await wholesOf(found.layers, await loadWhole(found));
  const wholeOf = new Map(found.layers.map((layer, i) => [layer, wholes[i] ?? new Map()]));
  for (const cut of cuts) {
    const fitting = found.layers.filter((layer) => layer.fits(cut));
    const optional = fitting.filter((layer) => mayRefuse(subject, layer, cut));
    const demanded = fitting.filter((layer) => !optional.includes(layer));
    for (const layers of [demanded, ...optional.map((layer) => [layer])]) {
      if (layers.length === 0) continue;
      const ranks = await loadCut(found.preparation, layers, cut, layers !== demanded);
      await use({ cut, layers, ranks, wholes: layers.map((layer) => wholeOf.get(layer) ?? new Map()) });
    }
  }
}

function mayRefuse({ cutsAt }: Subject, layer: LayerSpec, cut: Cut): boolean {
  return (cutsAt.outputs > 1 || cutsAt.inputs > 1) && !layer.aligned(cut);
}

/** Layers on all ranks of a cut. What is refused on one rank may be served on the next: it has to be right there. */
async function loadCut(
  preparation: Preparation,
  layers: readonly LayerSpec[],
  cut: Cut,
  optional: boolean,
): Promise<readonly (LoadedRank | null)[]> {
  const ranks: (LoadedRank | null)[] = [];
  for (let rank = 0; rank < cut.worldSize; rank++) {
    try {
      ranks.push(await loadLocated(preparation, { rank, cut, layers }));
    } catch (error) {
      if (!(error instanceof SimulationAssertionError) || !isTyped(error.cause)) throw error;
      if (!optional) throw hinting(error);
      ranks.push(null);
    }
  }
  return ranks;
}

function hinting({ message, details, cause }: SimulationAssertionError): SimulationAssertionError {
  const hint = 'a format that cannot be cut there says in "cutsAt" where it can';
  const error = new SimulationAssertionError(`${message}; ${hint}`, details);
  error.cause = cause;
  return error;
}
