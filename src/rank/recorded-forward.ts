/**
 * The model's pass for steps that are like one before, as decode steps are: the calls of kernels are written down once and made
 * again from then on, without the layers that made them. Of a small model, those took 4 to 8% of a step: each has objects of its
 * own, which the weights that passed by since have driven out of the caches (docs/decisions/0026).
 *
 * Where the collective allows it, a pass is written down whole. Otherwise it is in parts, and still yields at collectives.
 */
import type { Collective, CollectiveRequest, Pass } from "../collectives/collective.js";
import type { Kernels, Recorded } from "../kernels/kernels.js";
import type { ForwardStep } from "../layers/attention.js";
import type { Model } from "../models/model.js";
import type { LinearMethod } from "../quantization/contract.js";

/** Some calls, and the collective after them; none after the last ones. */
interface Part {
  readonly replay: () => void;
  readonly release: () => void;
  readonly request: CollectiveRequest | null;
}

/** The last step that was run in some arrays. Steps are alike where all of this is the same. */
interface KnownStep {
  readonly tokens: number;
  readonly sequences: number;
  /** There once a second one like it has been run. */
  parts: readonly Part[] | null;
}

/** What a pass is written down with. */
export interface ForwardDependencies {
  readonly model: Pick<Model, "forward">;
  readonly kernels: Pick<Kernels, "record">;
  /** Those of the model's linear layers. Nothing is written down unless all of them say that it may be. */
  readonly methods: readonly LinearMethod[];
  /** What whoever drives the pass has requests carried out by; left out where that is not one collective of this rank's. */
  readonly collective?: Collective | undefined;
}

export class RecordedForward {
  readonly #model: Pick<Model, "forward">;
  readonly #kernels: Pick<Kernels, "record">;
  readonly #collective: Collective | undefined;
  readonly #recordable: boolean;
  readonly #known = new Map<ForwardStep, KnownStep>();

  constructor({ model, kernels, methods, collective }: ForwardDependencies) {
    this.#model = model;
    this.#kernels = kernels;
    this.#collective = collective;
    this.#recordable = methods.every(
      ({ recordable = false, applyReduced }) => recordable && applyReduced === undefined,
    );
  }

  /** As the model's own: the same calls, the same collectives. */
  *forward(step: ForwardStep): Pass {
    const { tokens, sequences } = step;
    const known = this.#known.get(step);
    if (known?.tokens !== tokens || known.sequences !== sequences) {
      for (const { release } of known?.parts ?? []) release();
      this.#known.set(step, { tokens, sequences, parts: null });
      yield* this.#model.forward(step);
    } else if (known.parts !== null) {
      for (const { replay, request } of known.parts) {
        replay();
        if (request !== null) yield request;
      }
    } else {
      known.parts = yield* this.#record(step);
    }
  }

  /** Runs the step. Null where calls cannot be written down. */
  *#record(step: ForwardStep): Generator<CollectiveRequest, readonly Part[] | null, void> {
    const pass = this.#model.forward(step);
    const whole = this.#recordWhole(pass);
    if (whole !== undefined) return [whole];
    const parts: Part[] = [];
    for (;;) {
      const recorded = this.#written(() => pass.next());
      if (recorded === undefined) {
        yield* pass;
        return null;
      }
      const { result, replay, release } = recorded;
      const request = result.done === true ? null : copyOf(result.value);
      parts.push({ replay: () => void replay(), release, request });
      if (request === null) return parts;
      yield request;
    }
  }

  #recordWhole(pass: Pass): Part | undefined {
    const collective = this.#collective;
    const replayed = collective?.replayed;
    if (collective === undefined || replayed === undefined) return undefined;
    const recorded = this.#written(() => {
      const requests: CollectiveRequest[] = [];
      for (const request of pass) {
        collective.execute(request);
        requests.push(copyOf(request));
      }
      return requests;
    });
    if (recorded === undefined) return undefined;
    const { result: requests, replay, release } = recorded;
    return { replay: () => replayed(requests, replay()), release, request: null };
  }

  #written<Result>(make: () => Result): Recorded<Result> | undefined {
    return this.#recordable ? this.#kernels.record?.(make) : undefined;
  }
}

/** Layers use their requests again for steps of other sizes. */
function copyOf(request: CollectiveRequest): CollectiveRequest {
  return { ...request };
}
