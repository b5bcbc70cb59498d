import assert from "node:assert/strict";
import { VirtualAllocator } from "../../src/core/arena.js";
import type { DType } from "../../src/core/dtype.js";
import { readStepProfile } from "../../src/core/step-profile.js";
import { createStepProfile } from "../../src/core/step-profile-memory.js";
import { StepRecorder } from "../../src/core/step-recorder.js";
import { i32Of } from "../../src/core/tensor.js";
import type { Kernels, LinearWeight } from "../../src/kernels/kernels.js";
import { profiledKernels } from "../../src/kernels/profiled.js";
import { createShapeOnlyKernels } from "../../src/kernels/shape-only.js";
import { integers } from "./tensors.js";

/** Kernels that note every call, and the same profiled. */
function noted() {
  const calls: { readonly name: string; readonly args: readonly unknown[] }[] = [];
  const inner = createShapeOnlyKernels();
  const kernels = new Proxy(inner, {
    get(target, name: keyof Kernels) {
      const member = target[name];
      if (typeof member !== "function") return member;
      return (...args: unknown[]): unknown => {
        calls.push({ name, args });
        return Reflect.apply(member, target, args);
      };
    },
  });
  const handle = createStepProfile(1);
  const profiled = profiledKernels(kernels, new StepRecorder(handle, 0));
  const rows = () => readStepProfile(handle)[0]?.phases.decode.kernels ?? [];
  return { calls, profiled, rows };
}

describe("profiled kernels", () => {
  const allocator = new VirtualAllocator("test");
  const bindings = createShapeOnlyKernels();
  const operand = (name: string, shape: readonly number[], dtype: DType = "f32") =>
    bindings.bind(allocator.allocate(name, dtype, shape));
  const x = operand("x", [4, 8]);
  const out = operand("out", [4, 6]);
  const vector = operand("vector", [8]);
  const dense: LinearWeight = {
    format: "dense",
    matrix: operand("model.layers.3.self_attn.qkv_proj.weight", [6, 8], "bf16"),
  };
  const code4: LinearWeight = {
    format: "code4",
    codes: operand("model.layers.3.mlp.down_proj.weight.codes", [6, 4], "u8"),
    codebook: operand("codebook", [16]),
    scales: operand("scales", [6, 1]),
    minimums: operand("minimums", [6, 1]),
    blockSize: 8,
  };
  const cache = {
    keys: operand("k", [2, 1, 4, 4], "bf16"),
    values: vector,
    scales: null,
    kvHeads: 1,
    headSize: 4,
    blockSize: 4,
  };
  const batch = {
    queryStarts: bindings.bind(integers([3], [0, 1, 3])),
    contextLengths: bindings.bind(integers([2], [5, 7])),
    blockTables: vector,
  };
  const shape = { heads: 2, kvHeads: 1, kvHeadOf: vector, headSize: 4, scale: 1, slidingWindow: 0, softCap: 0 };

  /** One call of every kernel. */
  const everyCall: Readonly<Record<Exclude<keyof Kernels, "backend" | "isa" | "record">, readonly unknown[]>> = {
    bind: [x.tensor],
    release: [x],
    prepareLinear: [dense],
    takesRowGroups: [{ format: "code4", blockSize: 32 }],
    releaseLinear: [dense],
    embedding: [x, vector, dense, 2, 1],
    gatherRows: [x, x, vector, 1, 2],
    rmsNorm: [x, x, vector, 2, 1e-5],
    addRmsNorm: [x, x, x, vector, 2, 1e-5],
    headNorm: [x, vector, 2, 0, 2, 4, 1e-5],
    linear: [out, x, dense, vector, 2, 3],
    rope: [x, vector, vector, 2, 0, 2, 4],
    writeKv: [cache, x, vector, 2, 0, 4],
    attention: [out, x, cache, batch, 2, shape],
    siluMul: [out, x, 2],
    argmax: [vector, vector, x, 2, 8, 0],
  };

  for (const [name, args] of Object.entries(everyCall)) {
    it(`pass ${name} through as it is called`, () => {
      const { calls, profiled } = noted();
      const result: unknown = Reflect.apply(Reflect.get(profiled, name), profiled, args);
      assert.deepEqual(
        calls.map((call) => call.name),
        [name],
      );
      assert.ok(calls[0]?.args.every((arg, i) => arg === args[i]) === true && calls[0].args.length === args.length);
      if (name === "bind") assert.deepEqual(result, bindings.bind(x.tensor));
    });
  }

  it("cover every method that kernels have", () => {
    const methods = Object.entries(createShapeOnlyKernels()).filter(([, member]) => typeof member === "function");
    assert.deepEqual(Object.keys(everyCall).sort(), methods.map(([name]) => name).sort());
  });

  it("name linear calls by their layer and count the bytes and operations of each", () => {
    const { profiled, rows } = noted();
    profiled.linear(out, x, dense, null, 2);
    profiled.linear(out, x, code4, null, 1);
    const moved = (m: number): number => 4 * m * (8 + 6);
    assert.deepEqual(
      rows().map(({ name, calls, bytes, flops }) => ({ name, calls, bytes, flops })),
      [
        { name: "linear.qkv", calls: 1, bytes: 6 * 8 * 2 + moved(2), flops: 2 * 2 * 8 * 6 },
        { name: "linear.down", calls: 1, bytes: 6 * 4 + 4 * 16 + 2 * 4 * 6 + moved(1), flops: 2 * 8 * 6 },
      ],
    );
  });

  it("call the matrix of logits head, whether it is an embedding or has a weight of its own", () => {
    const { profiled, rows } = noted();
    for (const name of ["model.embed_tokens.weight", "lm_head.weight"]) {
      profiled.linear(out, x, { format: "dense", matrix: operand(name, [6, 8]) }, null, 1);
    }
    assert.deepEqual(
      rows().map(({ name, calls }) => [name, calls]),
      [["linear.head", 2]],
    );
  });

  it("count what attention reads: the cache once a sequence, and what every query sees", () => {
    const { profiled, rows } = noted();
    profiled.attention(out, x, cache, batch, 2, shape);
    profiled.attention(out, x, cache, batch, 2, { ...shape, slidingWindow: 3 });
    const [whole] = rows();
    // Contexts of 5 and 7, the second with two queries that see 6 and 7; in a window of 3, 3 and 4 are read, 3 seen.
    const kvBytes = (positions: number): number => 2 * positions * 4 * 2;
    assert.equal(whole?.bytes, kvBytes(5 + 7) + kvBytes(3 + 4));
    assert.equal(whole?.flops, 4 * (5 + 6 + 7 + 3 + 3 + 3) * 2 * 4);
  });

  it("count calls that are made again as the calls they are, with the time that each took", () => {
    let released = 0;
    const inner: Kernels = {
      ...createShapeOnlyKernels(),
      record: (make) => ({
        result: make(),
        replay: (micros) => {
          micros?.set([2000, 0, 3000, 0]);
          return 0;
        },
        release: () => released++,
      }),
    };
    const handle = createStepProfile(1);
    const recorder = new StepRecorder(handle, 0);
    const profiled = profiledKernels(inner, recorder);
    const contexts = integers([2], [5, 7]);
    const grown = { ...batch, contextLengths: bindings.bind(contexts) };
    const made = profiled.record?.(() => {
      profiled.linear(out, x, dense, null, 1);
      profiled.attention(out, x, cache, grown, 2, shape);
    });
    recorder.reset();
    profiled.siluMul(out, x, 2);
    i32Of(contexts).set([6, 8]);
    made?.replay();
    const kvBytes = (positions: number): number => 2 * positions * 4 * 2;
    assert.deepEqual(
      readStepProfile(handle)[0]?.phases.decode.kernels.map(({ name, calls, ms, bytes }) => [
        name,
        calls,
        name === "siluMul" ? 0 : ms,
        bytes,
      ]),
      [
        ["attention", 1, 3, kvBytes(6 + 8)],
        ["siluMul", 1, 0, 4 * 3 * 2 * 6],
        ["linear.qkv", 1, 2, 6 * 8 * 2 + 4 * (8 + 6)],
      ],
    );
    made?.release();
    assert.equal(released, 1);
  });
});
