/** What can be said of a weight without multiplying with it. */
import type { Operand } from "../core/operand.js";
import { tensorBytes } from "../core/tensor.js";
import type { LinearWeight } from "./kernels.js";

/** Bytes that one pass over a weight reads: its elements or codes, and what they are scaled by. */
export function weightBytes(weight: LinearWeight): number {
  return operandsOf(weight).reduce((sum, { tensor }) => sum + tensorBytes(tensor), 0);
}

/** Outputs of a linear layer with this weight. */
export function weightOutputs(weight: LinearWeight): number {
  if (weight.format === "prepared") return weightOutputs(weight.source);
  return weight.format === "dense" ? weight.matrix.rows : weight.codes.rows;
}

function operandsOf(weight: LinearWeight): readonly Operand[] {
  if (weight.format === "dense") return [weight.matrix];
  if (weight.format === "prepared") return operandsOf(weight.source);
  const { codes, scales, minimums } = weight;
  const common = minimums === null ? [codes, scales] : [codes, scales, minimums];
  return weight.format === "code4" ? [...common, weight.codebook] : common;
}

/**
 * Which layer of a block a weight belongs to, by the name of its tensor: `qkv` of
 * `model.layers.0.self_attn.qkv_proj.weight`. An embedding that serves as output head is a `head` as well.
 */
export function layerNameOf(weight: LinearWeight): string {
  if (weight.format === "prepared") return layerNameOf(weight.source);
  const { name } = (weight.format === "dense" ? weight.matrix : weight.codes).tensor;
  const [module = name] = name.split(".weight");
  const layer = module.slice(module.lastIndexOf(".") + 1).replace(/_proj$/, "");
  return layer === "lm_head" || layer === "embed_tokens" ? "head" : layer;
}
