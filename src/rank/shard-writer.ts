/**
 * Writes what one rank holds: its parameters, quantized ones in execution format, in safetensors files of its own, and says
 * which rows and columns of which weight they are. What of all ranks makes a state is coordinator/shard-checkpoint.ts.
 */
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { OutputFile } from "../checkpoint/output-file.js";
import { formatHeader, layOutFile, type TensorSpec } from "../checkpoint/safetensors-layout.js";
import { type DType, dtypeBytes, isFloat } from "../core/dtype.js";
import { invariant, UnsupportedError } from "../core/errors.js";
import type { Operand } from "../core/operand.js";
import { bytesOf, elementCount, f32Of } from "../core/tensor.js";
import type { LinearWeight, PreparedWeight } from "../kernels/kernels.js";
import type { LinearModule } from "../layers/layer-context.js";
import type { Parameter } from "../layers/parameter.js";
import {
  CHECKSUM_BYTES,
  type MatrixPiece,
  type PieceStorage,
  pieceTensorName,
  type StateFile,
  type StateVector,
} from "../loading/sharded-state/manifest.js";
import type { Range } from "../parallel/partition.js";
import type { ExecutionWeight, LinearPart } from "../quantization/contract.js";
import type { RankModel } from "./rank-model.js";

/** What one rank has written. Plain data: it crosses threads. */
export interface WrittenShard {
  readonly files: readonly StateFile[];
  /** Codebooks that `storage.codebook` of its pieces counts in. */
  readonly codebooks: readonly (readonly number[])[];
  readonly matrices: readonly {
    readonly name: string;
    readonly outputs: number;
    readonly inputs: number;
    readonly pieces: readonly MatrixPiece[];
  }[];
  readonly vectors: readonly StateVector[];
}

/** A tensor to be written, and its bytes where they lie. */
interface StoredTensor extends TensorSpec {
  readonly bytes: Uint8Array;
}

/**
 * Writes the files `model-rank-RANK-part-PART.safetensors` into a directory, each with at most `maxFileBytes` of tensors
 * unless one tensor alone has more. Throws UnsupportedError `UNSUPPORTED_SHARDED_STATE` for a linear method whose
 * arithmetic is more than its execution weights, ShardloomError `WRITE_FAILED`. `onBytes` hears of all that is written.
 */
export function writeShard(
  model: RankModel,
  directory: string,
  maxFileBytes: number,
  onBytes: (bytes: number) => void = () => {},
): WrittenShard {
  const shard = new Shard(model.rank);
  const ofLinears = new Set<Parameter>();
  for (const module of model.context.linears) {
    for (const parameter of module.parameters) ofLinears.add(parameter);
    shard.addLinear(module);
  }
  for (const parameter of model.context.parameters) {
    // Whole on every rank: the first rank's will do.
    if (!ofLinears.has(parameter) && model.rank === 0)
      shard.addVector(parameter, parameter.name, null, parameter.extent, 0);
  }
  return { ...shard.described(), files: shard.write(directory, maxFileBytes, onBytes) };
}

class Shard {
  readonly #rank: number;
  readonly #tensors: StoredTensor[] = [];
  readonly #codebooks = new Map<string, readonly number[]>();
  readonly #matrices: WrittenShard["matrices"][number][] = [];
  readonly #vectors: StateVector[] = [];

  constructor(rank: number) {
    this.#rank = rank;
  }

  addLinear({ layer, method, parameters }: LinearModule): void {
    if (method.applyReduced !== undefined) {
      throw new UnsupportedError(
        "UNSUPPORTED_SHARDED_STATE",
        `${layer.prefix}: expected a linear method that multiplies with its execution weights, but this one quantizes activations ` +
          "as well, which a sharded state cannot say",
        { layer: layer.prefix, rank: this.#rank },
      );
    }
    const weights = method.executionWeights();
    for (const part of layer.parts) {
      const pieces = weights.flatMap((weight) => this.#piecesOf(part, layer.inputs, weight));
      const named = pieces.map((piece, index) => ({ ...piece, index }));
      const { prefix: name, outputSize: outputs } = part;
      this.#matrices.push({
        name,
        outputs,
        inputs: layer.inputSize,
        pieces: named.map(({ weight: _, ...piece }) => piece),
      });
      for (const piece of named) this.#addTensors(name, piece, piece.weight);
    }
    const bias = parameters.find(({ spec }) => spec.name === "bias");
    if (bias === undefined) return;
    for (const part of layer.parts) {
      // Of a row-parallel layer every rank holds the whole.
      if (layer.kind === "row" && this.#rank !== 0) continue;
      this.addVector(bias, `${part.prefix}.bias`, part.rows, part.outputSize, part.localOffset);
    }
  }

  /** Elements `range` of a vector of `size`; they begin at `offset` of the parameter. */
  addVector({ tensor }: Parameter, name: string, range: Range | null, size: number, offset: number): void {
    const { dtype } = tensor;
    invariant(isFloat(dtype) && tensor.shape.length === 1, `${name} is no vector of floating-point numbers`);
    const own = range ?? { start: 0, end: size };
    const count = own.end - own.start;
    const width = dtypeBytes(dtype);
    this.#vectors.push({ name, dtype, size, pieces: [{ rank: this.#rank, range: own }] });
    this.#tensors.push({
      name,
      dtype,
      shape: [count],
      bytes: bytesOf(tensor).subarray(offset * width, (offset + count) * width),
    });
  }

  described(): Omit<WrittenShard, "files"> {
    return { codebooks: [...this.#codebooks.values()], matrices: this.#matrices, vectors: this.#vectors };
  }

  write(directory: string, maxFileBytes: number, onBytes: (bytes: number) => void): readonly StateFile[] {
    return inFiles(this.#tensors, maxFileBytes).map((tensors, part) => {
      const name = `model-rank-${this.#rank}-part-${part}.safetensors`;
      return { rank: this.#rank, ...writeFile(directory, name, tensors, onBytes) };
    });
  }

  /** The rows of a part that an execution weight holds, if there are any. */
  #piecesOf(part: LinearPart, inputs: Range, { firstRow, weight }: ExecutionWeight) {
    invariant(weight.format !== "prepared", `${part.prefix}: kernels in f32 leave weights as they are`);
    const rows = rowsOf(weight);
    const start = Math.max(firstRow, part.localOffset);
    const end = Math.min(firstRow + rows, part.localOffset + part.rows.end - part.rows.start);
    if (start >= end) return [];
    const first = part.rows.start - part.localOffset;
    const sliced = sliceRows(weight, start - firstRow, end - firstRow);
    const piece = {
      rank: this.#rank,
      rows: { start: start + first, end: end + first },
      columns: inputs,
      storage: this.#storageOf(sliced, inputs),
    };
    return [{ ...piece, weight: sliced }];
  }

  #storageOf(weight: SlicedWeight, { start, end }: Range): PieceStorage {
    const { source } = weight;
    if (source.format === "dense") {
      const { dtype } = source.matrix.tensor;
      invariant(isFloat(dtype), `${source.matrix.tensor.name} is not made of floating-point numbers`);
      return { format: "dense", dtype };
    }
    const { blockSize } = source;
    const minimums = source.minimums !== null;
    const valueDType = source.scales.tensor.dtype === "f16" ? "f16" : "f32";
    if (source.format === "code4") {
      return { format: "code4", blockSize, minimums, valueDType, codebook: this.#codebook(source.codebook) };
    }
    const rowScales = blockSize === end - start ? checksumOf([weight.scales, weight.minimums]) : null;
    return { format: "int8", blockSize, minimums, valueDType, multiplier: source.multiplier, rowScales };
  }

  #codebook({ tensor }: Operand): number {
    const entries = [...f32Of(tensor)];
    const key = entries.join(" ");
    if (!this.#codebooks.has(key)) this.#codebooks.set(key, entries);
    return [...this.#codebooks.keys()].indexOf(key);
  }

  #addTensors(name: string, piece: MatrixPiece, weight: SlicedWeight): void {
    const rows = piece.rows.end - piece.rows.start;
    const add = (plane: "" | "codes" | "scales" | "minimums", dtype: DType, bytes: Uint8Array): void => {
      const columns = bytes.length / dtypeBytes(dtype) / rows;
      this.#tensors.push({ name: pieceTensorName(name, piece, plane), dtype, shape: [rows, columns], bytes });
    };
    if (weight.source.format === "dense") {
      add("", weight.source.matrix.tensor.dtype, weight.codes);
      return;
    }
    add("codes", weight.source.format === "code4" ? "u8" : "i8", weight.codes);
    const { scales, minimums } = weight.source;
    add("scales", scales.tensor.dtype, weight.scales);
    if (minimums !== null) add("minimums", minimums.tensor.dtype, weight.minimums);
  }
}

/** A weight in the order of its rows. */
type StoredWeight = Exclude<LinearWeight, PreparedWeight>;

/** Some rows of a weight. Planes that the format has not are empty. */
interface SlicedWeight {
  readonly source: StoredWeight;
  readonly codes: Uint8Array;
  readonly scales: Uint8Array;
  readonly minimums: Uint8Array;
}

function rowsOf(weight: StoredWeight): number {
  return weight.format === "dense" ? weight.matrix.rows : weight.codes.rows;
}

function sliceRows(weight: StoredWeight, start: number, end: number): SlicedWeight {
  const total = rowsOf(weight);
  const slice = (operand: Operand | null): Uint8Array => {
    if (operand === null) return new Uint8Array(0);
    const bytes = bytesOf(operand.tensor);
    return bytes.subarray((bytes.length / total) * start, (bytes.length / total) * end);
  };
  if (weight.format === "dense")
    return { source: weight, codes: slice(weight.matrix), scales: slice(null), minimums: slice(null) };
  return { source: weight, codes: slice(weight.codes), scales: slice(weight.scales), minimums: slice(weight.minimums) };
}

/** Fills files one after another; a tensor is never split. */
function inFiles(tensors: readonly StoredTensor[], maxFileBytes: number): readonly (readonly StoredTensor[])[] {
  const files: StoredTensor[][] = [[]];
  let filled = 0;
  for (const tensor of tensors) {
    if (filled > 0 && filled + tensor.bytes.length > maxFileBytes) {
      files.push([]);
      filled = 0;
    }
    files.at(-1)?.push(tensor);
    filled += tensor.bytes.length;
  }
  return files;
}

function writeFile(
  directory: string,
  name: string,
  tensors: readonly StoredTensor[],
  onBytes: (bytes: number) => void,
) {
  const layout = layOutFile(tensors, []);
  const bytesByName = new Map(tensors.map((tensor) => [tensor.name, tensor.bytes]));
  const file = OutputFile.create(join(directory, name));
  const checksums = new Checksums();
  try {
    let position = 0;
    const put = (bytes: Uint8Array): void => {
      file.write(bytes, position);
      checksums.add(bytes);
      position += bytes.length;
      onBytes(bytes.length);
    };
    put(formatHeader(layout, []));
    for (const entry of layout.entries) {
      const bytes = bytesByName.get(entry.name);
      invariant(bytes?.length === elementCount(entry.shape) * dtypeBytes(entry.dtype), `${entry.name} has other bytes`);
      put(bytes);
    }
    file.sync();
    return { name, sizeBytes: position, checksums: checksums.all() };
  } finally {
    file.close();
  }
}

/** A checksum for each CHECKSUM_BYTES of what is added. */
class Checksums {
  readonly #complete: number[] = [];
  #current = 0;
  #filled = 0;

  add(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const part = bytes.subarray(done, done + CHECKSUM_BYTES - this.#filled);
      this.#current = crc32(part, this.#current);
      this.#filled += part.length;
      done += part.length;
      if (this.#filled === CHECKSUM_BYTES) this.#complete.push(this.#take());
    }
  }

  all(): readonly number[] {
    return this.#filled === 0 ? this.#complete : [...this.#complete, this.#current];
  }

  #take(): number {
    const current = this.#current;
    this.#current = 0;
    this.#filled = 0;
    return current;
  }
}

function checksumOf(parts: readonly Uint8Array[]): number {
  return parts.reduce((checksum, part) => crc32(part, checksum), 0);
}
