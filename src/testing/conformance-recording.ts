/**
 * A method that says it is `recordable` promises that the calls it makes of kernels are all it does: the runner writes them
 * down once, and makes them again for steps with other activations in the same memory.
 */
import type { Operand } from "../core/operand.js";
import { bytesOf, f32Of } from "../core/tensor.js";
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

/** Writes the calls of `apply` down, changes the activations, and holds the calls made again to `apply` called again. */
export function checkRecording(where: string, { module, out, x, bias }: RecordingSeat, kernels: Kernels, rows: number) {
  const { method, layer } = module;
  // The runner records no pass of a model with methods that sum over ranks by themselves.
  if (method.recordable !== true || method.applyReduced !== undefined) return;
  const calls: (() => void)[] = [];
  method.apply(watched(kernels, calls), out, x, bias, rows);

  const activations = f32Of(x.tensor);
  const kept = activations.slice();
  for (let i = 0; i < rows * x.columns; i++) activations[i] = 1 - 0.5 * (activations[i] ?? 0);
  const results = [() => method.apply(kernels, out, x, bias, rows), () => calls.forEach((call) => void call())];
  const [expected, received] = results.map((compute) => {
    f32Of(out.tensor).fill(Number.NaN);
    compute();
    return bytesOf(out.tensor).slice();
  });
  activations.set(kept);

  const byte = expected?.findIndex((value, i) => value !== received?.[i]) ?? -1;
  if (byte < 0) return;
  const element = Math.floor(byte / 4);
  const index = [Math.floor(element / out.columns), element % out.columns];
  throw new SimulationAssertionError(
    `${where}: ${layer.prefix} says that it is recordable, but its ${calls.length} calls of kernels, made again for other ` +
      `activations, leave other bits than apply: ${describePlace({ rank: layer.rank, index })} of the output`,
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
