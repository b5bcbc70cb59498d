/**
 * The code tables of bitsandbytes (bitsandbytes/functional.py: get_4bit_type, create_dynamic_map; csrc/kernels.cu), to the
 * bit.
 */

/** 4-bit formats: normal float (Dettmers et al. 2023, QLoRA) and a float of 1 + 2 + 1 bits. */
export type FourBitType = "nf4" | "fp4";

export function isFourBitType(value: unknown): value is FourBitType {
  return value === "nf4" || value === "fp4";
}

const NF4_BITS = [
  0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000, 0x3da2faff,
  0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000,
];

/** Bit 3 is the sign. Code 8 is a zero, whose sign differs among bitsandbytes' backends: here +0. */
const FP4_BITS = [
  0x00000000, 0x3baaaaab, 0x3f2aaaab, 0x3f800000, 0x3eaaaaab, 0x3f000000, 0x3e2aaaab, 0x3e800000, 0x00000000,
  0xbbaaaaab, 0xbf2aaaab, 0xbf800000, 0xbeaaaaab, 0xbf000000, 0xbe2aaaab, 0xbe800000,
];

const ofBits = (bits: readonly number[]): Float32Array => new Float32Array(Uint32Array.from(bits).buffer);

/** f32 `[16]`: the value of each code. */
export const CODEBOOKS: Readonly<Record<FourBitType, Float32Array>> = {
  nf4: ofBits(NF4_BITS),
  fp4: ofBits(FP4_BITS),
};

const { fround } = Math;

/**
 * `points` f32 values evenly spaced from 0.1 to 1, as torch.linspace computes them on a CPU: the first half counted up
 * from the start, the second down from the end, each with one rounding.
 */
function linspace(points: number): Float32Array {
  const start = fround(0.1);
  const step = fround(fround(1 - start) / (points - 1));
  const half = points >> 1;
  return Float32Array.from({ length: points }, (_, i) => (i < half ? start + step * i : 1 - step * (points - 1 - i)));
}

function createDynamicMap(): Float32Array {
  const values = [0, 1];
  for (let exponent = 0; exponent < 7; exponent++) {
    const power = fround(10 ** (exponent - 6));
    const boundaries = linspace(2 ** exponent + 1);
    for (let i = 0; i < 2 ** exponent; i++) {
      const mean = fround(fround((boundaries[i] ?? 0) + (boundaries[i + 1] ?? 0)) / 2);
      const value = fround(power * mean);
      values.push(value, -value);
    }
  }
  return Float32Array.from(values).sort();
}

/**
 * f32 `[256]`, ascending: the dynamic map of signed 8-bit codes (Dettmers 2015) that double quantization uses for absmax.
 * A checkpoint brings its own copy, which is the one to read it with.
 */
export const DYNAMIC_MAP: Float32Array = createDynamicMap();
