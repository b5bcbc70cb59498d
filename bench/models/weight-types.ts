/**
 * Made-up weights in ggml's tensor types. Layouts: `block_*` in ggml-common.h, the same that plugins/gguf reads.
 *
 * Values are about normal with a standard deviation of 0.02, as in a fresh model, so that activations stay finite however
 * deep it is. What a weight is changes no timing; that it can be represented does (subnormal numbers, infinities).
 */
import { f32ToBf16, f32ToF16 } from "../../src/core/dtype.js";

/** A ggml tensor type, and how a block of it is made up. */
export interface WeightType {
  readonly name: string;
  /** Number in `enum ggml_type`. */
  readonly ggmlType: number;
  readonly blockElements: number;
  readonly blockBytes: number;
  /** Writes one block at `at`. */
  readonly fill: (view: DataView, at: number, random: Random) => void;
}

/** Uniform in [0, 1). */
export type Random = () => number;

const DEVIATION = 0.02;

/** Of uniform codes, so that scaled codes have DEVIATION. */
const deviationOf = (codes: number): number => Math.sqrt((codes * codes - 1) / 12);

/** sfc32 with a splitmix-style start: small, fast, and long enough for any file. */
export function seededRandom(seed: number): Random {
  let [a, b, c, d] = [0x9e3779b9 ^ seed, 0x243f6a88, 0xb7e15162, 1];
  const next = (): number => {
    const sum = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 16; i++) next();
  return next;
}

/** Scale of a block: within half and one and a half of what gives DEVIATION. */
const scaleFor = (codes: number, random: Random): number => (DEVIATION / deviationOf(codes)) * (0.5 + random());

/** Sum of four uniforms: close enough to normal. */
const normal = (random: Random): number => (random() + random() + random() + random() - 2) * Math.sqrt(3) * DEVIATION;

function fillBytes(view: DataView, from: number, to: number, random: Random): void {
  for (let at = from; at < to; at++) view.setUint8(at, random() * 256);
}

const F32: WeightType = {
  name: "F32",
  ggmlType: 0,
  blockElements: 1,
  blockBytes: 4,
  fill: (view, at, random) => view.setFloat32(at, normal(random), true),
};

const F16: WeightType = {
  name: "F16",
  ggmlType: 1,
  blockElements: 1,
  blockBytes: 2,
  fill: (view, at, random) => view.setUint16(at, f32ToF16(normal(random)), true),
};

const BF16: WeightType = {
  name: "BF16",
  ggmlType: 30,
  blockElements: 1,
  blockBytes: 2,
  fill: (view, at, random) => view.setUint16(at, f32ToBf16(normal(random)), true),
};

const Q4_0: WeightType = {
  name: "Q4_0",
  ggmlType: 2,
  blockElements: 32,
  blockBytes: 18,
  fill: (view, at, random) => {
    view.setUint16(at, f32ToF16(scaleFor(16, random)), true);
    fillBytes(view, at + 2, at + 18, random);
  },
};

const Q4_1: WeightType = {
  name: "Q4_1",
  ggmlType: 3,
  blockElements: 32,
  blockBytes: 20,
  fill: (view, at, random) => {
    const scale = scaleFor(16, random);
    view.setUint16(at, f32ToF16(scale), true);
    view.setUint16(at + 2, f32ToF16(-7.5 * scale), true);
    fillBytes(view, at + 4, at + 20, random);
  },
};

const Q8_0: WeightType = {
  name: "Q8_0",
  ggmlType: 8,
  blockElements: 32,
  blockBytes: 34,
  fill: (view, at, random) => {
    view.setUint16(at, f32ToF16(scaleFor(255, random)), true);
    for (let i = 0; i < 32; i++) view.setInt8(at + 2 + i, Math.floor(random() * 255) - 127);
  },
};

/** 256 codes of 6 bits in two planes, 16 scales of 8 bits, one f16 for all of them. */
const Q6_K: WeightType = {
  name: "Q6_K",
  ggmlType: 14,
  blockElements: 256,
  blockBytes: 210,
  fill: (view, at, random) => {
    fillBytes(view, at, at + 192, random);
    for (let i = 0; i < 16; i++) view.setInt8(at + 192 + i, 48 + Math.floor(random() * 64));
    view.setUint16(at + 208, f32ToF16(scaleFor(64, random) / 80), true);
  },
};

const TYPES = { F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q6_K } as const satisfies Record<string, WeightType>;

export type WeightTypeName = keyof typeof TYPES;

export const weightType = (name: WeightTypeName): WeightType => TYPES[name];

/** Bytes that `elements` take. */
export function bytesOfElements(type: WeightType, elements: number): number {
  return (elements / type.blockElements) * type.blockBytes;
}
