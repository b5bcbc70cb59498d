/**
 * Nothing of a checkpoint is kept once it is loaded, nothing of a model once it is dropped: told by the garbage collector,
 * with weak references. What lies outside its heap (memory of an addon of the plugin's own) is not seen.
 */
import { setImmediate } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { InternalError } from "../core/errors.js";
import type { LinearModule } from "../layers/layer-context.js";
import type { QuantizationConfig } from "../quantization/contract.js";
import { SimulationAssertionError } from "./assertion-error.js";
import type { PluginCheck } from "./conformance-check.js";
import type { Subject } from "./conformance-fixture.js";
import { findLayers } from "./conformance-kinds.js";
import { type Cut, LAYER_KINDS } from "./conformance-layers.js";
import { loadRank, within } from "./conformance-load.js";

const CUT: Cut = { worldSize: 2, style: "even" };

/** Collections after which whatever is still there is held by somebody. */
const COLLECTIONS = 20;

export function memoryChecks(subject: Subject): readonly PluginCheck[] {
  const check = (what: string, run: () => Promise<void>): PluginCheck => ({ name: `${subject.name}: ${what}`, run });
  return [
    check("nothing is kept of a checkpoint once it is loaded", () => checkAfterLoading(subject)),
    check("nothing is kept of a model once it is dropped", () => checkAfterDropping(subject)),
  ];
}

/** Objects by what they are, without holding them. */
type Watched = Map<string, WeakRef<object>>;

/** What ranks hold as long as the model lives. */
interface Held {
  readonly linears: readonly LinearModule[];
  readonly quantization: QuantizationConfig;
}

async function checkAfterLoading(subject: Subject): Promise<void> {
  const collect = collector();
  const watched: Watched = new Map();
  const held = await load(subject, watched);
  const names = [...watched.keys()].filter((name) => /^(checkpoint|tensor)/.test(name));
  await expectCollected(collect, watched, names, "its layers are ready and the checkpoint is closed");
  // Whatever was collected, it was with the model alive.
  if (held.length === 0) throw new RangeError("no rank was loaded");
}

async function checkAfterDropping(subject: Subject): Promise<void> {
  const collect = collector();
  const watched: Watched = new Map();
  await load(subject, watched);
  await expectCollected(collect, watched, [...watched.keys()], "the model is dropped");
}

async function load(subject: Subject, watched: Watched): Promise<readonly Held[]> {
  const kind = LAYER_KINDS.find((each) => !subject.skips(each)) ?? "replicated";
  const { preparation, layers } = await findLayers(subject, kind);
  const fitting = layers.filter((layer) => layer.fits(CUT) && layer.aligned(CUT));
  const held: Held[] = [];
  for (let rank = 0; rank < CUT.worldSize; rank++) {
    const note = (what: string, value: object): void => {
      watched.set(`${what} of rank ${rank}`, new WeakRef(value));
    };
    const { linears, quantization } = await within(`rank ${rank}`, { rank }, () =>
      loadRank(preparation, {
        rank,
        cut: CUT,
        layers: fitting,
        alter(checkpoint) {
          note("checkpoint", checkpoint);
          for (const tensor of checkpoint.tensors.values()) note(`tensor ${tensor.name}`, tensor);
          return checkpoint;
        },
      }),
    );
    // The config of a model that is not quantized is shardloom's own, and lives for ever.
    if (preparation.ranks.quantization !== null) note("quantization config", quantization);
    for (const { layer, method } of linears) note(`linear method of ${layer.prefix}`, method);
    held.push({ linears, quantization });
  }
  return held;
}

async function expectCollected(
  collect: () => void,
  watched: Watched,
  names: readonly string[],
  when: string,
): Promise<void> {
  let kept = names;
  for (let i = 0; i < COLLECTIONS && kept.length > 0; i++) {
    // What was looked at through a WeakRef stays until the turn is over.
    await setImmediate();
    collect();
    kept = kept.filter((name) => watched.get(name)?.deref() !== undefined);
  }
  const [first] = kept;
  if (first === undefined) return;
  const more = kept.length === 1 ? "" : ` and ${kept.length - 1} more`;
  throw new SimulationAssertionError(
    `once ${when}: expected nothing to be kept but something still holds the ${first}${more}`,
    { expected: "nothing", received: kept },
  );
}

/** The garbage collector, whether or not the process was started with --expose-gc. */
function collector(): () => void {
  const exposed: unknown = Reflect.get(globalThis, "gc");
  if (typeof exposed === "function") return () => void Reflect.apply(exposed, undefined, []);
  // As jest-leak-detector does: the flag takes effect in contexts that are made while it is set.
  setFlagsFromString("--expose-gc");
  const collect: unknown = runInNewContext("gc");
  setFlagsFromString("--no-expose-gc");
  if (typeof collect !== "function") throw new InternalError("expected the garbage collector of V8 but received none");
  return () => void Reflect.apply(collect, undefined, []);
}
