import { type MatrixToStore, memoryTensor, modelInFormat, type StoredMatrix, testPlugin } from "shardloom/testing";
import { plugin } from "./index.js";

const BLOCK_ROWS = 24;

/** Rounds a matrix to -1, 0 or 1 times the largest magnitude of each block of rows. */
function store({ module, shape: [rows, columns], values, role }: MatrixToStore): StoredMatrix | null {
  if (role !== "linear") return null;
  const scales = Float32Array.from({ length: Math.ceil(rows / BLOCK_ROWS) }, (_, block) => {
    const start = block * BLOCK_ROWS * columns;
    return values
      .subarray(start, start + BLOCK_ROWS * columns)
      .reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  });
  const codes = new Uint8Array((rows * columns) / 4);
  const stored = values.map((value, i) => {
    const scale = scales[Math.floor(i / columns / BLOCK_ROWS)] ?? 0;
    const trit = Math.round(value / scale);
    codes[i >> 2] = (codes[i >> 2] ?? 0) | ((trit + 1) << (2 * (i % 4)));
    return trit * scale;
  });
  const tensors = [
    memoryTensor(`${module}.weight`, "u8", [rows, columns / 4], codes),
    memoryTensor(`${module}.weight_scale`, "f32", [scales.length, 1], scales),
  ];
  return { tensors, values: stored };
}

describe("shardloom-plugin-ternary", () => {
  const settings = { quant_method: "ternary", block_rows: BLOCK_ROWS };
  const fixture = {
    name: "ternary",
    ...modelInFormat({ settings, store, config: { head_dim: 16 } }),
    cutsAt: { inputs: 16 },
    finite: (tensor: string) => tensor.endsWith("_scale"),
  };
  for (const { name, run } of testPlugin(plugin, [fixture])) it(name, run);
});
