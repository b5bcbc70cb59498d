/** What ranks hold the same of, and what they get different amounts of, said once for all layers. */
import type { GroupOwnership, ParameterSplit } from "../rank/ownership.js";

/** Something that several ranks hold the same of. Tensors of all layers that differ in their number only count together. */
export interface Replicated {
  /** `model.layers.*.input_layernorm.weight` */
  readonly tensors: string;
  readonly count: number;
  /** Most ranks that hold the same element. */
  readonly holders: number;
  /** Bytes over all ranks, beyond one copy. */
  readonly extraBytes: number;
}

/** Something that ranks get different amounts of, one entry a rank. */
export interface Uneven {
  /** `model.layers.*.mlp.gate_up_proj` */
  readonly layers: string;
  readonly count: number;
  readonly split: Exclude<ParameterSplit, "none">;
  readonly sizes: readonly number[];
}

/** A name with the numbers of layers left out, so that what all layers have in common is said once. */
function anyLayer(name: string): string {
  return name.replaceAll(/\.\d+(?=\.|$)/g, ".*");
}

/** What several ranks hold. */
export function replicatedIn({ tensors }: GroupOwnership): readonly Replicated[] {
  const groups = new Map<string, { count: number; holders: number; extraBytes: number }>();
  for (const { tensor, cells } of tensors) {
    const shared = cells.filter(({ holders }) => holders.length > 1);
    if (shared.length === 0) continue;
    const name = anyLayer(tensor);
    const group = groups.get(name) ?? { count: 0, holders: 0, extraBytes: 0 };
    group.count++;
    for (const { holders } of shared) {
      const sizes = holders.map(({ sizeBytes }) => sizeBytes);
      group.holders = Math.max(group.holders, holders.length);
      group.extraBytes += sizes.reduce((sum, each) => sum + each, 0) - Math.max(...sizes);
    }
    groups.set(name, group);
  }
  return [...groups].map(([tensors, group]) => ({ tensors, ...group }));
}

/** Layers that ranks have different sizes of. */
export function unevenIn({ ranks }: GroupOwnership): readonly Uneven[] {
  const groups = new Map<string, Uneven>();
  for (const [i, layer] of (ranks[0]?.layers ?? []).entries()) {
    const split = layer.kind === "row" ? "columns" : "rows";
    const sizes = ranks.map(({ layers }) => {
      const own = layers[i];
      if (own === undefined) return 0;
      if (split === "columns") return own.inputs.end - own.inputs.start;
      return own.parts.reduce((sum, { rows }) => sum + rows.end - rows.start, 0);
    });
    if (sizes.every((size) => size === sizes[0])) continue;
    const name = anyLayer(layer.prefix);
    const key = `${name} ${sizes.join(" ")}`;
    groups.set(key, { layers: name, count: (groups.get(key)?.count ?? 0) + 1, split, sizes });
  }
  return [...groups.values()];
}
