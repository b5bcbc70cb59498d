/** Paged KV caches for kernel tests, whatever they hold their elements in. */

import type { Operand } from "../../src/core/operand.js";
import { bytesOf, f32Of, type Tensor } from "../../src/core/tensor.js";
import type { KvCache } from "../../src/kernels/kernels.js";
import { type KvCacheDType, kvElementDtype } from "../../src/kernels/kv-cache-dtype.js";
import { type Random, zeros } from "./tensors.js";

export interface CacheExtents {
  readonly blocks: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly blockSize: number;
}

export interface CacheTensors {
  readonly extents: CacheExtents;
  readonly keys: Tensor;
  readonly values: Tensor;
  readonly scales: Tensor | null;
}

export function zeroCache(dtype: KvCacheDType, extents: CacheExtents): CacheTensors {
  const { blocks, kvHeads, headSize, blockSize } = extents;
  const element = kvElementDtype(dtype);
  return {
    extents,
    keys: zeros(element, [blocks, kvHeads, headSize, blockSize]),
    values: zeros(element, [blocks, kvHeads, blockSize, headSize]),
    scales: dtype === "int8" ? zeros("f32", [blocks, kvHeads, 2, blockSize]) : null,
  };
}

/** Keys in [-2, 2), values in [-1, 1). */
export function randomCache(dtype: KvCacheDType, extents: CacheExtents, random: Random): CacheTensors {
  if (dtype !== "int8") {
    const { keys, values } = zeroCache(dtype, extents);
    return {
      extents,
      keys: random.floats(dtype, keys.shape, 2),
      values: random.floats(dtype, values.shape),
      scales: null,
    };
  }
  const cache = zeroCache(dtype, extents);
  for (const codes of [bytesOf(cache.keys), bytesOf(cache.values)]) {
    for (let i = 0; i < codes.length; i++) codes[i] = random.below(255) - 127;
  }
  const scales = cache.scales === null ? new Float32Array() : f32Of(cache.scales);
  for (let i = 0; i < scales.length; i++) {
    const largest = Math.floor(i / extents.blockSize) % 2 === 0 ? 2 : 1;
    scales[i] = (largest * (random.next() + 1)) / 2 / 127;
  }
  return cache;
}

/** All of a cache that kernels may write. */
export function tensorsOf({ keys, values, scales }: CacheTensors): Tensor[] {
  return scales === null ? [keys, values] : [keys, values, scales];
}

export function copyOf(tensor: Tensor): Tensor {
  const copy = zeros(tensor.dtype, tensor.shape);
  bytesOf(copy).set(bytesOf(tensor));
  return copy;
}

export function copyOfCache({ extents, keys, values, scales }: CacheTensors): CacheTensors {
  return { extents, keys: copyOf(keys), values: copyOf(values), scales: scales === null ? null : copyOf(scales) };
}

export function boundCache(
  bind: (tensor: Tensor) => Operand,
  { extents, keys, values, scales }: CacheTensors,
): KvCache {
  const { kvHeads, headSize, blockSize } = extents;
  return {
    keys: bind(keys),
    values: bind(values),
    scales: scales === null ? null : bind(scales),
    kvHeads,
    headSize,
    blockSize,
  };
}
