/** Plugins that compute wrongly, or touch what is not theirs. */
import { f32Of, i32Of, type Kernels, type Operand, type Pass } from "../../../src/plugin.js";
import { type BrokenPlugin, withMethod } from "./broken-plugin.js";
import { separate } from "./fixtures.js";
import { NibblesMethod } from "./nibbles.js";

class ScalingItsInput extends NibblesMethod {
  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    const values = f32Of(x.tensor);
    values.forEach((value, i) => {
      values[i] = 2 * value;
    });
    super.apply(kernels, out, x, bias, rows);
  }
}

class AddingTheBiasTwice extends NibblesMethod {
  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    super.apply(kernels, out, x, bias, rows);
    if (bias === null) return;
    const [values, biases] = [f32Of(out.tensor), f32Of(bias.tensor)];
    for (let i = 0; i < rows * out.columns; i++) values[i] = (values[i] ?? 0) + (biases[i % out.columns] ?? 0);
  }
}

class RoundingToBf16 extends NibblesMethod {
  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    super.apply(kernels, out, x, bias, rows);
    const bits = new Uint32Array(out.tensor.arena.buffer, out.tensor.byteOffset, rows * out.columns);
    bits.forEach((value, i) => {
      bits[i] = value & 0xffff0000;
    });
  }
}

class BindingInEveryStep extends NibblesMethod {
  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    super.apply(kernels, kernels.bind(out.tensor), x, bias, rows);
  }
}

class ClearingItsOutput extends NibblesMethod {
  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    f32Of(out.tensor).fill(0);
    super.apply(kernels, out, x, bias, rows);
  }
}

/** Its results are right, but the bias is in no call of a kernel. */
class RecordableThoughItComputes extends NibblesMethod {
  readonly recordable = true;
  override apply(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): void {
    super.apply(kernels, out, x, null, rows);
    if (bias === null) return;
    const [values, biases] = [f32Of(out.tensor), f32Of(bias.tensor)];
    for (let i = 0; i < rows * out.columns; i++) values[i] = (values[i] ?? 0) + (biases[i % out.columns] ?? 0);
  }
}

/** Its results are right, but no kernel makes them. */
class RecordableThoughItLooksUp extends NibblesMethod {
  readonly recordable = true;
  override embed(_kernels: Kernels, out: Operand, ids: Operand, rows: number, firstId: number): void {
    if (this.weight?.format !== "dense") return;
    const [values, table, width] = [f32Of(out.tensor), f32Of(this.weight.matrix.tensor), out.columns];
    for (const [row, id] of i32Of(ids.tensor).subarray(0, rows).entries()) {
      const at = (id - firstId) * width;
      for (let i = 0; i < width; i++) values[row * width + i] = id < firstId ? 0 : (table[at + i] ?? 0);
    }
  }
}

/** Sums over ranks itself, and every rank adds the bias before. */
class AddingTheBiasOnEveryRank extends NibblesMethod {
  *applyReduced(kernels: Kernels, out: Operand, x: Operand, bias: Operand | null, rows: number): Pass {
    this.apply(kernels, out, x, bias, rows);
    yield { kind: "allReduce", data: out, count: rows * out.columns };
  }
}

class LookingUpFromTheFirstRow extends NibblesMethod {
  override embed(kernels: Kernels, out: Operand, ids: Operand, rows: number): void {
    super.embed(kernels, out, ids, rows, 0);
  }
}

export const arithmeticFaults: readonly BrokenPlugin[] = [
  {
    what: "scales its activations in place",
    plugin: withMethod(ScalingItsInput),
    fixture: separate,
    caughtBy: "replicated layers are loaded, processed and applied on one rank",
    message: /replicated model\.layers\.0\.self_attn\.q_proj: apply/,
  },
  {
    what: "adds the bias twice",
    plugin: withMethod(AddingTheBiasTwice),
    fixture: separate,
    caughtBy: "replicated layers are loaded, processed and applied on one rank",
    message: /rank 0, index \[0, \d+\] of the output: expected -?[\d.e-]+ within [\d.e-]+ but received/,
  },
  {
    what: "rounds what it computes to bf16",
    plugin: withMethod(RoundingToBf16),
    fixture: separate,
    caughtBy: "replicated layers are loaded, processed and applied on one rank",
    message: /of the output: expected/,
  },
  {
    what: "binds memory in every step",
    plugin: withMethod(BindingInEveryStep),
    fixture: separate,
    caughtBy: "replicated layers are loaded, processed and applied on one rank",
    message: /it binds .*, which belongs into processWeightsAfterLoading/,
  },
  {
    what: "clears more rows than it was asked for",
    plugin: withMethod(ClearingItsOutput),
    fixture: separate,
    caughtBy: "replicated layers are loaded, processed and applied on one rank",
    message: /expected 3 rows of output but row 3 was written/,
  },
  {
    what: "says that it is recordable, and adds the bias by itself",
    plugin: withMethod(RecordableThoughItComputes),
    fixture: separate,
    caughtBy: "replicated layers are loaded, processed and applied on one rank",
    message: /says that it is recordable, but its 1 calls of kernels/,
  },
  {
    what: "says that it is recordable, and looks rows up by itself",
    plugin: withMethod(RecordableThoughItLooksUp),
    fixture: separate,
    caughtBy: "embedding layers are loaded, processed and applied on one rank",
    message:
      /says that it is recordable, but its 0 calls of kernels, made again for other ids, leave other bits than embed/,
  },
  {
    what: "adds the bias on every rank",
    plugin: withMethod(AddingTheBiasOnEveryRank),
    fixture: separate,
    caughtBy: "row layers are applied in shards as the whole is",
    message: /2 ranks, cut evenly, row .*: apply/,
  },
  {
    what: "looks embeddings up as if every rank began with id 0",
    plugin: withMethod(LookingUpFromTheFirstRow),
    fixture: separate,
    caughtBy: "embedding layers are applied in shards as the whole is",
    message: /embed, model\.embed_tokens, rank 0, index \[0, 0\]/,
  },
];
