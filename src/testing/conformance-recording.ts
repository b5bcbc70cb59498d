/**
 * A method that says it is `recordable` promises that the calls it makes of kernels are all it does: the runner writes them
 * down once, and makes them again for steps with other activations, or other ids to look up, in the same memory.
 */
import type { Operand } from "../core/operand.js";
import { bytesOf, f32Of, i32Of } from "../core/tensor.js";
import type { Kernels } from "../kernels/kernels.js";
import type { LinearModule } from "../layers/layer-context.js";
import { describePlace, SimulationAssertionError } from "./assertion-error.js";

/** A rank's end of one layer in one call. */
export interface RecordingSeat {
  readonly module: LinearModule;
  readonly out: Operand;
  readonly x: Operand;
  readonly bias: Operand;
}

/** A rank's end of an embedding that is looked up in. */
export interface LookupSeat {
  readonly module: LinearModule;
  readonly kernels: Kernels;
  readonly out: Operand;
  readonly ids: Operand;
}

export function checkRecording(where: string, { module, out, x, bias }: RecordingSeat, kernels: Kernels, rows: number) {
  checkCalls(where, module, kernels, {
    name: "apply",
    inputs: "activations",
    input: x,
    out,
    ask: (asked) => module.method.apply(asked, out, x, bias, rows),
    change() {
      const activations = f32Of(x.tensor);
      for (let i = 0; i < rows * x.columns; i++) activations[i] = 1 - 0.5 * (activations[i] ?? 0);
    },
  });
}

export function checkRecordedLookup(where: string, seat: LookupSeat, rows: number) {
  const { module, kernels, ids, out } = seat;
  checkCalls(where, module, kernels, {
    name: "embed",
    inputs: "ids",
    input: ids,
    out,
    ask: (asked) => lookUp({ ...seat, kernels: asked }, rows),
    change: () => i32Of(ids.tensor).reverse(),
  });
}

/** The ids' rows that this rank has. */
export function lookUp({ module: { layer, method }, kernels, out, ids }: LookupSeat, rows: number): void {
  method.embed?.(kernels, out, ids, rows, layer.parts[0]?.rows.start ?? 0);
}

interface Request {
  readonly name: string;
  /** What `input` holds, which `change` changes. */
  readonly inputs: string;
  readonly input: Operand;
  readonly out: Operand;
  ask(kernels: Kernels): void;
  change(): void;
}

/** Writes the calls that answer a request down, changes its input, and holds the calls made again to the request made again. */
function checkCalls(
  where: string,
  { layer, method }: LinearModule,
  kernels: Kernels,
  { name, inputs, input, out, ask, change }: Request,
): void {
  // The runner records no pass of a model with methods that sum over ranks by themselves.
  if (method.recordable !== true || method.applyReduced !== undefined) return;
  const calls: (() => void)[] = [];
  ask(watched(kernels, calls));

  const kept = bytesOf(input.tensor).slice();
  change();
  const results = [() => ask(kernels), () => calls.forEach((call) => void call())];
  const [expected, received] = results.map((compute) => {
    f32Of(out.tensor).fill(Number.NaN);
    compute();
    return bytesOf(out.tensor).slice();
  });
  bytesOf(input.tensor).set(kept);

  const byte = expected?.findIndex((value, i) => value !== received?.[i]) ?? -1;
  if (byte < 0) return;
  const element = Math.floor(byte / 4);
  const index = [Math.floor(element / out.columns), element % out.columns];
  throw new SimulationAssertionError(
    `${where}: ${layer.prefix} says that it is recordable, but its ${calls.length} calls of kernels, made again for other ` +
      `${inputs}, leave other bits than ${name}: ${describePlace({ rank: layer.rank, index })} of the output`,
    { layer: layer.prefix, rank: layer.rank, index, expected: "the same bits", received: "others" },
  );
}

/** Kernels that do what they are asked, and write down what that was. */
function watched(kernels: Kernels, calls: (() => void)[]): Kernels {
  return new Proxy(kernels, {
    get: (target, name) => {
      const value: unknown = Reflect.get(target, name, target);
      if (typeof value !== "function") return value;
      return (...args: unknown[]): unknown => {
        calls.push(() => void Reflect.apply(value, target, args));
        return Reflect.apply(value, target, args);
      };
    },
  });
}
