/**
 * Settings that mean nothing: `quantization_config` comes from a file as untrusted as any, options from whoever types them.
 * Every key is given values of other types and sizes; each must end in a ShardloomError, or change no value.
 */
import type { JsonObject, JsonValue } from "../core/json.js";
import { SimulationAssertionError } from "./assertion-error.js";
import type { PluginCheck } from "./conformance-check.js";
import type { Subject } from "./conformance-fixture.js";
import { findLayers } from "./conformance-kinds.js";
import { LAYER_KINDS, type LayerSpec, WHOLE } from "./conformance-layers.js";
import { describeError, isTyped, loadRank, within } from "./conformance-load.js";
import { shardValues } from "./conformance-values.js";
import type { Preparation } from "./preparation.js";

/** Of every type, and numbers of every sign and size. */
const VALUES: readonly JsonValue[] = ["nonsense", "", [], [[]], {}, { a: 1 }, true, -1, 0.5, 1e308, "__proto__"];

/** Keys that a plugin may not know. The first is one that a careless copy takes for something else. */
const SURPLUS: readonly string[] = ["__proto__", "constructor", "conformance_surplus"];

export function settingsChecks(subject: Subject): readonly PluginCheck[] {
  return [
    {
      name: `${subject.name}: settings and options that mean nothing are refused`,
      run: () => checkSettings(subject),
    },
  ];
}

async function checkSettings(subject: Subject): Promise<void> {
  const kind = LAYER_KINDS.find((each) => !subject.skips(each)) ?? "replicated";
  const { preparation, layers } = await findLayers(subject, kind);
  const { quantization } = preparation.ranks;
  // A model that is not quantized has none.
  if (quantization === null) return;
  const expected = await within("the model", {}, () => load(preparation, layers));
  for (const which of ["settings", "options"] as const) {
    for (const [key, value] of changesOf(quantization[which])) {
      const changed = { ...quantization, [which]: withKey(quantization[which], key, value) };
      const ranks = { ...preparation.ranks, quantization: changed };
      const where = `${which} with ${JSON.stringify(key)}: ${JSON.stringify(value)}`;
      await checkCase(where, expected, () => load({ ...preparation, ranks }, layers));
    }
  }
}

function changesOf(given: JsonObject): readonly (readonly [string, JsonValue])[] {
  const known = Object.keys(given).filter((key) => key !== "quant_method");
  return [
    ...known.flatMap((key) => VALUES.filter((value) => value !== given[key]).map((value) => [key, value] as const)),
    ...SURPLUS.map((key) => [key, "nonsense"] as const),
  ];
}

/** As JSON.parse makes it: `__proto__` is a key like any other. */
function withKey(given: JsonObject, key: string, value: JsonValue): JsonObject {
  const entries = Object.entries(given).filter(([known]) => known !== key);
  return Object.fromEntries([...entries, [key, value]]);
}

async function load(preparation: Preparation, layers: readonly LayerSpec[]): Promise<readonly Float32Array[]> {
  const { linears } = await loadRank(preparation, { rank: 0, cut: WHOLE, layers });
  return Promise.all(linears.map((module) => shardValues(module)));
}

async function checkCase(
  where: string,
  expected: readonly Float32Array[],
  run: () => Promise<readonly Float32Array[]>,
): Promise<void> {
  let received: readonly Float32Array[];
  try {
    received = await run();
  } catch (error) {
    const original = error instanceof SimulationAssertionError ? (error.cause ?? error) : error;
    if (isTyped(original)) return;
    const described = describeError(original);
    const failure = new SimulationAssertionError(
      `${where}: expected a ShardloomError that says what is wrong but received ${described}`,
      { expected: "a ShardloomError", received: described },
    );
    failure.cause = original;
    throw failure;
  }
  for (const [i, values] of expected.entries()) {
    const index = values.findIndex((value, element) => !Object.is(value, received[i]?.[element]));
    if (index < 0) continue;
    throw new SimulationAssertionError(
      `${where}: expected an error, or the values without it, but element ${index} of layer ${i} is ${received[i]?.[index]} ` +
        `instead of ${values[index]}`,
      { index: [i, index], expected: values[index], received: received[i]?.[index] },
    );
  }
}
