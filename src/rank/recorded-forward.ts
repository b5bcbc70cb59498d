/**
 * The model's pass for steps that are like one before, as decode steps are: the kernels' calls between two collectives are
 * written down once and made again from then on, without the layers that made them. Of a small model, those took 4 to 8% of a
 * step: each has objects of its own, which the weights that passed by since have driven out of the caches.
 */
import type { CollectiveRequest, Pass } from "../collectives/collective.js";
import type { Kernels } from "../kernels/kernels.js";
import type { ForwardStep } from "../layers/attention.js";
import type { Model } from "../models/model.js";
import type { LinearMethod } from "../quantization/contract.js";

/** Some calls, and the collective after them; none after the last ones. */
interface Part {
  readonly replay: () => void;
  readonly request: CollectiveRequest | null;
}

/** The last step that was run in some arrays. Steps are alike where all of this is the same. */
interface KnownStep {
  readonly tokens: number;
  readonly sequences: number;
  /** There once a second one like it has been run. */
  parts: readonly Part[] | null;
}

export class RecordedForward {
  readonly #model: Pick<Model, "forward">;
  readonly #kernels: Pick<Kernels, "record">;
  readonly #recordable: boolean;
  readonly #known = new Map<ForwardStep, KnownStep>();

  /** `methods`: those of the model's linear layers. Nothing is written down unless all of them say that it may be. */
  constructor(model: Pick<Model, "forward">, kernels: Pick<Kernels, "record">, methods: readonly LinearMethod[]) {
    this.#model = model;
    this.#kernels = kernels;
    this.#recordable = methods.every(
      ({ recordable = false, applyReduced }) => recordable && applyReduced === undefined,
    );
  }

  /** As the model's own: the same calls, the same collectives. */
  *forward(step: ForwardStep): Pass {
    const { tokens, sequences } = step;
    const known = this.#known.get(step);
    if (known?.tokens !== tokens || known.sequences !== sequences) {
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

  /** Null where calls cannot be written down. */
  *#record(step: ForwardStep): Generator<CollectiveRequest, readonly Part[] | null, void> {
    const pass = this.#model.forward(step);
    const parts: Part[] = [];
    for (;;) {
      const recorded = this.#recordable ? this.#kernels.record?.(() => pass.next()) : undefined;
      if (recorded === undefined) {
        yield* pass;
        return null;
      }
      const { result, replay } = recorded;
      // The layers use their requests again for steps of other sizes.
      const request = result.done === true ? null : { ...result.value };
      parts.push({ replay: () => replay(), request });
      if (request === null) return parts;
      yield request;
    }
  }
}
