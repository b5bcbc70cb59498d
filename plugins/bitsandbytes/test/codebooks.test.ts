import assert from "node:assert/strict";
import { f32ToBits } from "shardloom/plugin";
import { CODEBOOKS, DYNAMIC_MAP, decode, type FourBitType } from "../src/index.js";
import { bytesOfTensor, openFixture, tensorOf } from "./fixture.js";

const LAYER = "model.layers.0.mlp.down_proj.weight";

describe("code tables", () => {
  for (const type of ["nf4", "fp4"] as const satisfies readonly FourBitType[]) {
    it(`${type}: every code times absmax 1 is the entry of the map that bitsandbytes stores, to the bit`, () => {
      const stored = bytesOfTensor(tensorOf(openFixture(`llama/${type}`), `${LAYER}.quant_map`));
      const codes = Uint8Array.from({ length: 8 }, (_, i) => ((2 * i) << 4) | (2 * i + 1));
      const values = new Float32Array(16);
      decode(CODEBOOKS[type], codes, Float32Array.of(1), 64, 0, values);
      assert.deepEqual([...new Uint8Array(values.buffer)], [...stored]);
    });
  }

  it("pins a few entries by their bits, so that a change of the fixtures would show", () => {
    const bits = (map: Float32Array, code: number): string => f32ToBits(map[code] ?? Number.NaN).toString(16);
    assert.deepEqual(
      [bits(CODEBOOKS.nf4, 1), bits(CODEBOOKS.nf4, 7), bits(CODEBOOKS.nf4, 8)],
      ["bf3239b1", "0", "3da2faff"],
    );
    assert.deepEqual(
      [bits(CODEBOOKS.fp4, 1), bits(CODEBOOKS.fp4, 8), bits(CODEBOOKS.fp4, 9)],
      ["3baaaaab", "0", "bbaaaaab"],
    );
    assert.deepEqual(
      [bits(DYNAMIC_MAP, 0), bits(DYNAMIC_MAP, 127), bits(DYNAMIC_MAP, 128)],
      ["bf7e3333", "0", "3513a3b7"],
    );
    assert.equal(DYNAMIC_MAP[255], 1);
  });

  it("the dynamic map is bitsandbytes' own, to the bit: its f32 arithmetic is not that of the closed form", () => {
    const stored = bytesOfTensor(tensorOf(openFixture("llama/nf4-dq"), `${LAYER}.nested_quant_map`));
    assert.deepEqual([...new Uint8Array(DYNAMIC_MAP.buffer)], [...stored]);
  });
});
