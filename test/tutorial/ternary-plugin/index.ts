/** Ternary weights for shardloom: -1, 0 or 1, four to a byte, times one scale for each block of rows. */
import {
  bytesOf,
  CheckpointError,
  f32Of,
  type LinearLayer,
  type LinearMethod,
  type LinearWeight,
  type Plugin,
  type QuantizationConfigFactory,
  rangeSize,
  type ShardIndexer,
} from "shardloom/plugin";

const ternary: QuantizationConfigFactory = {
  create({ settings, checkpoint }) {
    const rows = settings["block_rows"];
    if (typeof rows !== "number" || !Number.isSafeInteger(rows) || rows < 1) {
      throw invalid("INVALID_CONFIG", "config.json: block_rows", "a whole number above 0", JSON.stringify(rows));
    }
    const scales = new Set([...checkpoint.tensors.keys()].filter((name) => name.endsWith(".weight_scale")));
    const isTernary = ({ prefix }: { readonly prefix: string }): boolean => scales.has(`${prefix}.weight_scale`);
    return {
      name: "ternary",
      linearMethod(layer) {
        const fused = layer.parts.length > 1 && isTernary(layer);
        return fused || layer.parts.some(isTernary) ? ternaryMethod(rows, fused) : null;
      },
    };
  },
};

export const plugin: Plugin = {
  name: "shardloom-plugin-ternary",
  apiVersion: 1,
  register: (context) => context.registerQuantizationConfig("ternary", ternary),
};

function ternaryMethod(blockRows: number, fused: boolean): LinearMethod {
  let weight: LinearWeight;
  return {
    createWeights(creation, layer) {
      const [rows, columns] = [layer.outputSizePerPartition, rangeSize(layer.inputs)];
      if (columns % 16 !== 0) throw invalid("TERNARY_COLUMNS", layer.prefix, "a multiple of 16 columns", columns);
      const dims = { outputDim: 0, inputDim: 1 };
      const packed = { dim: 1, factor: 4 };
      creation.addParameter({ name: "weight", dtype: "u8", shape: [rows, columns / 4], ...dims, packed });
      const parts = blocksOf(layer, blockRows);
      const shape = [parts.reduce((sum, { destination }) => sum + destination.size, 0), 1];
      const blockScale = { outputs: blockRows, inputs: layer.inputSize };
      const scale = { name: "weight_scale", dtype: "f32", shape, ...dims, blockScale } as const;
      const shardIndexer: ShardIndexer = ({ shardId, of, extent }) =>
        parts.find((part) => part.shardId === shardId)?.[of] ?? extent;
      creation.addParameter(fused ? { ...scale, shardIndexer } : scale);
    },
    processWeightsAfterLoading({ kernels, tensor, allocate }, layer) {
      const [rows, columns] = [layer.outputSizePerPartition, rangeSize(layer.inputs)];
      const codes = allocate("codes", "u8", [rows, columns / 2]);
      const codebook = allocate("codebook", "f32", [16]);
      const scales = allocate("scales", "f32", [rows, 1]);
      f32Of(codebook).set([-1, 0, 1]);
      const unpacked = bytesOf(codes);
      // The first of four codes lies in the lowest bits of a byte; of the kernels' two, the first lies in the highest.
      bytesOf(tensor("weight")).forEach((byte, i) => {
        if ((byte & (byte >> 1) & 0x55) !== 0) throw invalid("INVALID_CODE", tensor("weight").name, "codes 0 to 2", 3);
        unpacked[2 * i] = ((byte & 0x03) << 4) | ((byte & 0x0c) >> 2);
        unpacked[2 * i + 1] = (byte & 0x30) | (byte >> 6);
      });
      const [ofBlocks, ofRows] = [f32Of(tensor("weight_scale")), f32Of(scales)];
      const poison = ofBlocks.find((scale) => !Number.isFinite(scale));
      if (poison !== undefined) throw invalid("NON_FINITE_SCALE", tensor("weight_scale").name, "finite scales", poison);
      for (const { rows: own, localOffset, first, destination } of blocksOf(layer, blockRows)) {
        for (let row = own.start; row < own.end; row++) {
          const block = destination.offset + Math.floor(row / blockRows) - first;
          ofRows[localOffset + row - own.start] = ofBlocks[block] ?? Number.NaN;
        }
      }
      const operands = { codes: kernels.bind(codes), codebook: kernels.bind(codebook), scales: kernels.bind(scales) };
      weight = kernels.prepareLinear({ format: "code4", ...operands, minimums: null, blockSize: columns });
    },
    apply: (kernels, out, x, bias, rows) => kernels.linear(out, x, weight, bias, rows),
    embed: (kernels, out, ids, rows, firstId) => kernels.embedding(out, ids, weight, rows, firstId),
    executionWeights: () => [{ firstRow: 0, weight }],
  };
}

/** Where the blocks of a layer's matrices lie: this rank's in its parameter, and in a tensor that is fused on disk. */
function blocksOf({ parts }: LinearLayer, blockRows: number) {
  let [local, onDisk] = [0, 0];
  return parts.map((part) => {
    const first = Math.floor(part.rows.start / blockRows);
    const size = Math.ceil(part.rows.end / blockRows) - first;
    const extents = { destination: { offset: local, size }, source: { offset: onDisk + first, size } };
    [local, onDisk] = [local + size, onDisk + Math.ceil(part.outputSize / blockRows)];
    return { ...part, first, ...extents };
  });
}

const invalid = (code: string, tensor: string, expected: string, received: string | number): CheckpointError =>
  new CheckpointError(code, `${tensor}: expected ${expected} but received ${received}`, { tensor, expected, received });
