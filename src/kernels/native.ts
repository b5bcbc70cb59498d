/**
 * Kernels of the C++ addon. Each method is one call with handles and numbers: nothing is allocated, and the addon checks
 * every extent and index against what was bound.
 */
import { InternalError, invariant, reasonOf, ShardloomError } from "../core/errors.js";
import { type NativeAddon, nativeAddon } from "../core/native-addon.js";
import type { Operand } from "../core/operand.js";
import { bytesOf, type Tensor } from "../core/tensor.js";
import { type Activations, takesBf16 } from "./activation-levels.js";
import type {
  AttentionBatch,
  AttentionShape,
  BlocksOfCodes,
  Kernels,
  KvCache,
  LinearWeight,
  Recorded,
} from "./kernels.js";
import { operandExtents } from "./operand-extents.js";

/** Handle that stands for no operand. */
const NONE = 0;

/** Blocks of 8-bit codes that the addon prepares are multiples of it. */
const INT8_BLOCK_STEP = 16;

/** What the addon calls levels of activations. Weights stay as they are at f32. */
const ACTIVATIONS = { int16: 1, int8: 2, auto: 3 } as const;

/**
 * Kernels of the addon that this thread loaded, which multiply with prepared weights at a level of activations. Throws ShardloomError `NATIVE_KERNELS_UNAVAILABLE` when there is none,
 * OptionError `UNSUPPORTED_ISA` when SHARDLOOM_ISA asks for what this machine cannot run.
 */
export function createNativeKernels(activations: Activations = "f32"): Kernels {
  const native = nativeAddon();
  if (native.loaded) return new NativeKernels(native.addon, activations);
  if (native.error !== undefined) throw native.error;
  throw new ShardloomError(
    "NATIVE_KERNELS_UNAVAILABLE",
    `expected the native kernels but the addon cannot be used: ${native.reason}`,
    { received: native.reason },
  );
}

class NativeKernels implements Kernels {
  readonly backend = "native";
  readonly #addon: NativeAddon;

  readonly #activations: Activations;

  constructor(addon: NativeAddon, activations: Activations) {
    this.#addon = addon;
    this.#activations = activations;
  }

  get isa(): string {
    return this.#addon.isa;
  }

  bind(tensor: Tensor): Operand {
    const { rows, columns } = operandExtents(tensor);
    try {
      const handle = this.#addon.bind(bytesOf(tensor), tensor.dtype, rows, columns);
      return { tensor, handle, rows, columns };
    } catch (error) {
      const reason = reasonOf(error);
      throw new InternalError(`cannot bind ${tensor.name}: ${reason}`, { tensor: tensor.name }, { cause: error });
    }
  }

  release(operand: Operand): void {
    this.#addon.release(operand.handle);
  }

  takesRowGroups({ format, blockSize }: BlocksOfCodes): boolean {
    const activations = this.#activations;
    if (activations === "f32" || activations === "bf16") return false;
    return format === "code4" || blockSize % INT8_BLOCK_STEP === 0;
  }

  prepareLinear(weight: LinearWeight): LinearWeight {
    const activations = this.#activations;
    if (activations === "f32" || weight.format === "prepared") return weight;
    if (weight.format === "dense") {
      const rounds = activations === "bf16" || (activations === "auto" && this.#addon.bf16Pays);
      return rounds && takesBf16(weight) ? { ...weight, activations: "bf16" } : weight;
    }
    if (activations === "bf16") return weight;
    const { codes, scales, minimums, blockSize } = weight;
    const level = ACTIVATIONS[activations];
    const inGroups = weight.inGroups === true ? 1 : 0;
    const handle =
      weight.format === "code4"
        ? this.#addon.prepareCode4(
            codes.handle,
            weight.codebook.handle,
            scales.handle,
            handleOf(minimums),
            blockSize,
            level,
            inGroups,
          )
        : this.#addon.prepareInt8(
            codes.handle,
            scales.handle,
            handleOf(minimums),
            blockSize,
            weight.multiplier,
            level,
            inGroups,
          );
    invariant(handle !== NONE || inGroups === 0, `${codes.tensor.name} lies in groups, and is not prepared`);
    return handle === NONE ? weight : { format: "prepared", source: weight, handle };
  }

  releaseLinear(weight: LinearWeight): void {
    if (weight.format === "prepared") this.#addon.releaseWeight(weight.handle);
  }

  record<Result>(make: () => Result): Recorded<Result> {
    const addon = this.#addon;
    addon.startRecording();
    let result: Result;
    try {
      result = make();
    } catch (error) {
      addon.releaseRecording(addon.stopRecording());
      throw error;
    }
    const recording = addon.stopRecording();
    return {
      result,
      replay(micros) {
        if (micros === undefined) return addon.replay(recording);
        return addon.replayTimed(recording, new Uint8Array(micros.buffer, micros.byteOffset, micros.byteLength));
      },
      release: () => addon.releaseRecording(recording),
    };
  }

  embedding(out: Operand, ids: Operand, table: LinearWeight, rows: number, firstId: number): void {
    const addon = this.#addon;
    if (table.format === "prepared") {
      addon.embeddingPrepared(out.handle, ids.handle, table.handle, rows, firstId);
      return;
    }
    if (table.format === "dense") {
      addon.embedding(out.handle, ids.handle, table.matrix.handle, rows, firstId);
      return;
    }
    const { codes, scales, minimums, blockSize } = table;
    if (table.format === "code4") {
      addon.embeddingCode4(
        out.handle,
        ids.handle,
        codes.handle,
        table.codebook.handle,
        scales.handle,
        handleOf(minimums),
        rows,
        firstId,
        blockSize,
      );
    } else {
      addon.embeddingInt8(
        out.handle,
        ids.handle,
        codes.handle,
        scales.handle,
        handleOf(minimums),
        rows,
        firstId,
        blockSize,
        table.multiplier,
      );
    }
  }

  gatherRows(out: Operand, source: Operand, indices: Operand, first: number, rows: number): void {
    this.#addon.gatherRows(out.handle, source.handle, indices.handle, first, rows);
  }

  rmsNorm(out: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void {
    this.#addon.rmsNorm(out.handle, x.handle, weight.handle, rows, epsilon);
  }

  addRmsNorm(out: Operand, residual: Operand, x: Operand, weight: Operand, rows: number, epsilon: number): void {
    this.#addon.addRmsNorm(out.handle, residual.handle, x.handle, weight.handle, rows, epsilon);
  }

  headNorm(
    x: Operand,
    weight: Operand,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
    epsilon: number,
  ): void {
    this.#addon.headNorm(x.handle, weight.handle, rows, firstColumn, heads, headSize, epsilon);
  }

  linear(out: Operand, x: Operand, weight: LinearWeight, bias: Operand | null, rows: number, firstColumn = 0): void {
    const addon = this.#addon;
    if (weight.format === "prepared") {
      addon.linearPrepared(out.handle, x.handle, weight.handle, handleOf(bias), rows, firstColumn);
      return;
    }
    if (weight.format === "dense") {
      if (weight.activations === "bf16") {
        addon.linearBf16(out.handle, x.handle, weight.matrix.handle, handleOf(bias), rows, firstColumn);
      } else {
        addon.linear(out.handle, x.handle, weight.matrix.handle, handleOf(bias), rows, firstColumn);
      }
      return;
    }
    const { codes, scales, minimums, blockSize } = weight;
    if (weight.format === "code4") {
      addon.linearCode4(
        out.handle,
        x.handle,
        codes.handle,
        weight.codebook.handle,
        scales.handle,
        handleOf(minimums),
        handleOf(bias),
        rows,
        firstColumn,
        blockSize,
      );
    } else {
      addon.linearInt8(
        out.handle,
        x.handle,
        codes.handle,
        scales.handle,
        handleOf(minimums),
        handleOf(bias),
        rows,
        firstColumn,
        blockSize,
        weight.multiplier,
      );
    }
  }

  rope(
    x: Operand,
    positions: Operand,
    cosSin: Operand,
    rows: number,
    firstColumn: number,
    heads: number,
    headSize: number,
  ): void {
    this.#addon.rope(x.handle, positions.handle, cosSin.handle, rows, firstColumn, heads, headSize);
  }

  writeKv(cache: KvCache, source: Operand, slots: Operand, rows: number, keyColumn: number, valueColumn: number): void {
    this.#addon.writeKv(
      cache.keys.handle,
      cache.values.handle,
      handleOf(cache.scales),
      source.handle,
      slots.handle,
      rows,
      keyColumn,
      valueColumn,
      cache.kvHeads,
      cache.headSize,
      cache.blockSize,
    );
  }

  attention(
    out: Operand,
    q: Operand,
    cache: KvCache,
    batch: AttentionBatch,
    sequences: number,
    shape: AttentionShape,
  ): void {
    this.#addon.attention(
      out.handle,
      q.handle,
      cache.keys.handle,
      cache.values.handle,
      handleOf(cache.scales),
      shape.kvHeadOf.handle,
      batch.queryStarts.handle,
      batch.contextLengths.handle,
      batch.blockTables.handle,
      sequences,
      shape.heads,
      cache.kvHeads,
      cache.headSize,
      cache.blockSize,
      shape.scale,
      shape.slidingWindow,
      shape.softCap,
    );
  }

  siluMul(out: Operand, gateUp: Operand, rows: number): void {
    this.#addon.siluMul(out.handle, gateUp.handle, rows);
  }

  argmax(values: Operand, ids: Operand, logits: Operand, rows: number, columns: number, firstId: number): void {
    this.#addon.argmax(values.handle, ids.handle, logits.handle, rows, columns, firstId);
  }
}

function handleOf(operand: Operand | null): number {
  return operand === null ? NONE : operand.handle;
}
