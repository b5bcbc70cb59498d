/**
 * The checkpoint as layers see it. Sidecars are gone; a weight whose codes a layer takes is its codes and its scales, laid
 * out as that layer loads them; any other quantized weight is the f32 tensor of its values.
 */
import { type Checkpoint, type CheckpointTensor, InternalError, type LinearLayer } from "shardloom/plugin";
import { isIndexed, PARAMETER } from "./linear-method.js";
import type { FourBitWeight, QuantizedWeight } from "./quantized-weight.js";
import type { Segment } from "./segments.js";
import { dequantized, groupScales, int8Codes, packedCodes, rowScales } from "./virtual-tensors.js";

/** How a layer takes a weight. */
export type Form =
  | {
      readonly kind: "code4";
      readonly weight: FourBitWeight;
      readonly shape: readonly number[];
      readonly group: number;
    }
  | { readonly kind: "int8" }
  | { readonly kind: "values" };

/** Forms by the name of the weight. */
export type Forms = Map<string, Form>;

/** Notes how a layer takes the weights of a segment. */
export function claim(forms: Forms, { storage, weights }: Segment, layer: LinearLayer): void {
  for (const weight of weights) {
    const form = formOf(storage, weight, layer);
    const other = forms.get(weight.name);
    if (other !== undefined && !sameForm(form, other)) {
      throw new InternalError(`two layers, one of them ${layer.prefix}, take ${weight.name} in different forms`);
    }
    forms.set(weight.name, form);
  }
}

function formOf(storage: Segment["storage"], weight: QuantizedWeight, layer: LinearLayer): Form {
  if (storage.kind === "code4" && weight.format === "4bit") {
    const [rows = 0, columns = 0] = weight.shape;
    const shape = isIndexed(layer) ? [(rows * columns) / 2, 1] : [rows, columns / 2];
    return { kind: "code4", weight, shape, group: storage.group };
  }
  return storage.kind === "int8" ? { kind: "int8" } : { kind: "values" };
}

function sameForm(a: Form, b: Form): boolean {
  if (a.kind !== "code4" || b.kind !== "code4") return a.kind === b.kind;
  return a.group === b.group && a.shape.join() === b.shape.join();
}

/** What a view is made of. */
export interface ViewParts {
  readonly source: Checkpoint;
  /** Quantized weights by name: those on disk, and those that are quantized while they are read. */
  readonly weights: ReadonlyMap<string, QuantizedWeight>;
  readonly sidecars: ReadonlySet<string>;
  readonly forms: Forms;
}

/** A checkpoint over another one, which it closes when it is closed. Tensors keep the order of the files. */
export function createView({ source, weights, sidecars, forms }: ViewParts): Checkpoint {
  const tensors = new Map<string, CheckpointTensor>();
  for (const tensor of source.tensors.values()) {
    if (sidecars.has(tensor.name)) continue;
    const weight = weights.get(tensor.name);
    const replacing = weight === undefined ? [tensor] : tensorsOf(weight, forms.get(tensor.name));
    for (const one of replacing) tensors.set(one.name, one);
  }
  return {
    tensors,
    get bytesRead() {
      return source.bytesRead;
    },
    close: () => source.close(),
  };
}

function tensorsOf(weight: QuantizedWeight, form: Form | undefined): readonly CheckpointTensor[] {
  const module = weight.name.slice(0, -PARAMETER.weight.length);
  if (form?.kind === "code4" && weight.format === "4bit") {
    return [packedCodes(weight, form.shape), groupScales(weight, `${module}${PARAMETER.absmax}`, form.group)];
  }
  if (form?.kind === "int8" && weight.format === "int8") {
    return [int8Codes(weight), rowScales(weight, `${module}${PARAMETER.scales}`)];
  }
  return [dequantized(weight)];
}
