/** What layers multiply with, compared bit for bit: with the unsharded layer's, and with expected values. */
import type { LinearModule } from "../layers/layer-context.js";
import { rangeSize } from "../parallel/partition.js";
import { describePlace, SimulationAssertionError } from "./assertion-error.js";
import type { ExpectedValues } from "./conformance-fixture.js";
import type { LayerSpec } from "./conformance-layers.js";
import { within } from "./conformance-load.js";
import { SimulatedLayer } from "./simulated-rank.js";

/** Values of the whole matrices of one layer, by the name of their module, row-major `[outputs, inputs]`. */
export type WholeValues = ReadonlyMap<string, Float32Array>;

/** Dequantizes what a rank's layer multiplies with, `[rows of this rank, inputs of this rank]`. */
export function shardValues(module: LinearModule): Promise<Float32Array> {
  const { prefix, rank } = module.layer;
  const where = `${prefix}, rank ${rank}: execution weights`;
  return within(where, { layer: prefix, rank }, () => new SimulatedLayer(module).values());
}

/** The values of a layer that one rank holds whole. */
export async function wholeValues(module: LinearModule): Promise<WholeValues> {
  const values = await shardValues(module);
  const { parts, inputSize } = module.layer;
  return new Map(
    parts.map(({ prefix, localOffset, outputSize }) => {
      return [prefix, values.subarray(localOffset * inputSize, (localOffset + outputSize) * inputSize)];
    }),
  );
}

/** Whether two f32 are the same. */
type Same = (a: number, b: number) => boolean;

/**
 * Compares a rank's share of a layer with its slice of whole matrices. Throws SimulationAssertionError naming module, rank,
 * shard id, index in the whole matrix, expected, received. `where` begins its message.
 */
export async function compareShard(where: string, module: LinearModule, whole: WholeValues, same: Same): Promise<void> {
  const { layer } = module;
  const { inputs, inputSize, rank } = layer;
  const values = await shardValues(module);
  const columns = rangeSize(inputs);
  for (const { prefix, rows, localOffset, shardId } of layer.parts) {
    const expected = whole.get(prefix);
    if (expected === undefined) continue;
    for (let row = rows.start; row < rows.end; row++) {
      const to = (localOffset + row - rows.start) * columns;
      const from = row * inputSize + inputs.start;
      for (let column = 0; column < columns; column++) {
        const a = expected[from + column] ?? Number.NaN;
        const b = values[to + column] ?? Number.NaN;
        if (same(a, b)) continue;
        const index = [row, inputs.start + column];
        const place = describePlace({ rank, shardId, index });
        throw new SimulationAssertionError(`${where}: ${prefix}.weight, ${place}: expected ${a} but received ${b}`, {
          layer: layer.prefix,
          tensor: `${prefix}.weight`,
          rank,
          shardId,
          index,
          expected: a,
          received: b,
        });
      }
    }
  }
}

/** Bit for bit, but that one NaN is as good as another. */
export const sameBits: Same = Object.is;

/** Bit for bit, but for the sign of zeros, in which implementations of a format differ. */
export const sameValue: Same = (a, b) => a === b || (Number.isNaN(a) && Number.isNaN(b));

/**
 * The values that an author expects of a layer's matrices, where there are any. Those of a tensor that holds several parts
 * are expected under its name or under theirs. Throws SimulationAssertionError where they are too few or too many.
 */
export function expectedValues(layer: LayerSpec, expected: ExpectedValues): WholeValues {
  const { prefix, parts, inputs } = layer;
  const found = new Map<string, Float32Array>();
  const total = parts.reduce((sum, { outputs }) => sum + outputs, 0);
  const all = parts.length > 1 ? expected(`${prefix}.weight`) : undefined;
  if (all !== undefined) checkLength(`${prefix}.weight`, all, total * inputs);
  let row = 0;
  for (const part of parts) {
    const own = expected(`${part.prefix}.weight`);
    if (own !== undefined) checkLength(`${part.prefix}.weight`, own, part.outputs * inputs);
    const values = own ?? all?.subarray(row * inputs, (row + part.outputs) * inputs);
    if (values !== undefined) found.set(part.prefix, values);
    row += part.outputs;
  }
  return found;
}

function checkLength(tensor: string, { length }: Float32Array, expected: number): void {
  if (length === expected) return;
  throw new SimulationAssertionError(
    `the fixture's expected values of ${tensor}: expected ${expected} but received ${length}`,
    { tensor, expected, received: length },
  );
}
