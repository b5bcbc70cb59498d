import assert from "node:assert/strict";
import { once } from "node:events";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { Worker } from "node:worker_threads";
import { nativeAddon } from "../../src/core/native-addon.js";
import type { Operand } from "../../src/core/operand.js";
import { bytesOf, type Tensor } from "../../src/core/tensor.js";
import type { LinearWeight } from "../../src/kernels/kernels.js";
import { createNativeKernels } from "../../src/kernels/native.js";
import { floats, integers, loadedAddon, numbersOf, scoped, zeros } from "./tensors.js";

const addon = loadedAddon();
const kernels = createNativeKernels();

describe("binding memory for native kernels", () => {
  it("refuses a view that could be detached from its memory", () => {
    assert.throws(() => addon.bind(new Uint8Array(16), "f32", 1, 4), /SharedArrayBuffer/);
  });

  it("refuses a view that is not exactly as long as its elements", () => {
    const view = new Uint8Array(new SharedArrayBuffer(64));
    assert.throws(() => addon.bind(view, "f32", 3, 5), {
      name: "RangeError",
      message: /60 bytes for \[3, 5\] f32 .* 64/,
    });
    assert.throws(() => addon.bind(view, "f32", 2 ** 40, 2 ** 40), RangeError);
    assert.throws(() => addon.bind(view, "f32", -1, -16), RangeError);
    assert.throws(() => addon.bind(view, "f32", 1.5, 4), RangeError);
    assert.throws(() => addon.bind(view, "f32", Number.NaN, 4), RangeError);
  });

  it("refuses elements that are not aligned", () => {
    const view = new Uint8Array(new SharedArrayBuffer(64), 2, 32);
    assert.throws(() => addon.bind(view, "f32", 1, 8), /multiple of 4 .* 2 beyond/);
    addon.release(addon.bind(view, "bf16", 1, 16));
    const tensor = { ...zeros("f32", [16]), dtype: "f32", shape: [3] } as const;
    assert.throws(() => kernels.bind({ ...tensor, byteOffset: tensor.byteOffset + 2 }), { name: "InternalError" });
  });

  it("refuses tensors that do not lie inside their arena", () => {
    const tensor = zeros("f32", [4]);
    for (const wrong of [
      { shape: [100] },
      { byteOffset: tensor.byteOffset + 400 },
      { byteOffset: -4 },
      { shape: [] },
      { shape: [-1, -4] },
    ]) {
      assert.throws(() => kernels.bind({ ...tensor, ...wrong }), { name: "InternalError" }, JSON.stringify(wrong));
    }
  });

  it("refuses what is no view and no dtype", () => {
    const view = new Uint8Array(new SharedArrayBuffer(8));
    const bind: (...values: unknown[]) => unknown = (...values) => Reflect.apply(addon.bind, addon, values);
    assert.throws(() => bind(view, "f64", 1, 1), TypeError);
    assert.throws(() => bind(view, 0, 1, 8), TypeError);
    assert.throws(() => bind(new Float32Array(new SharedArrayBuffer(8)), "f32", 1, 2), TypeError);
    assert.throws(() => bind(null, "f32", 1, 2), TypeError);
    assert.throws(() => bind(view, "f32", 1), TypeError);
  });

  it("keeps memory alive as long as it is bound, though nothing else refers to it", () => {
    setFlagsFromString("--expose-gc");
    const collectGarbage: () => void = runInNewContext("gc");
    const bindAll = () =>
      Array.from({ length: 20 }, (_, i) => {
        const { rows, columns, handle } = kernels.bind(
          floats(
            "f32",
            [1, 4096],
            Array.from({ length: 4096 }, () => i),
          ),
        );
        return { rows, columns, handle };
      });
    const handles = bindAll();
    for (let i = 0; i < 3; i++) collectGarbage();
    for (const [i, { handle }] of handles.entries()) {
      const [out, index] = [zeros("f32", [1, 4096]), integers([1], [0])];
      scoped(kernels, (bind) => addon.gatherRows(bind(out).handle, handle, bind(index).handle, 0, 1));
      assert.ok(numbersOf(out).every((value) => value === i));
      addon.release(handle);
    }
  });
});

describe("a handle", () => {
  const forged: readonly unknown[] = [
    0,
    -1,
    1.5,
    1e6,
    2 ** 31,
    2 ** 40,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    "1",
    null,
    undefined,
    {},
  ];

  it("that was never given out is refused wherever it stands", () => {
    scoped(kernels, (bind) => {
      const x = bind(zeros("f32", [1, 4])).handle;
      const weight = bind(zeros("f32", [4])).handle;
      for (const handle of forged) {
        for (const values of [
          [handle, x, weight, 1, 0],
          [x, handle, weight, 1, 0],
          [x, x, handle, 1, 0],
        ]) {
          assert.throws(() => Reflect.apply(addon.rmsNorm, addon, values), /TypeError|RangeError/, String(handle));
        }
      }
    });
  });

  it("that was released is refused, even when its slot has a new tenant", () => {
    const tensor = zeros("f32", [1, 4]);
    const stale = new Set<number>();
    // More than the generations of a slot, so that slots are retired as well.
    for (let i = 0; i < 5000; i++) {
      const operand = kernels.bind(tensor);
      assert.ok(!stale.has(operand.handle), `handle ${operand.handle} came back`);
      kernels.release(operand);
      stale.add(operand.handle);
    }
    const live = kernels.bind(tensor);
    for (const handle of stale) {
      assert.throws(() => addon.release(handle), /bound handle/);
      assert.throws(() => addon.siluMul(live.handle, handle, 1), /bound handle/);
    }
    kernels.release(live);
    assert.throws(() => kernels.siluMul(live, live, 1), RangeError);
  });

  it("means nothing in another thread", async () => {
    const operand = kernels.bind(zeros("f32", [1, 4]));
    const native = nativeAddon();
    assert.ok(native.loaded);
    const code = `
      const { parentPort, workerData } = require("node:worker_threads");
      import(workerData.module).then(({ nativeAddon }) => {
        const { addon } = nativeAddon();
        try { addon.release(workerData.handle); parentPort.postMessage("released"); }
        catch (error) { parentPort.postMessage(error.message); }
      });`;
    const module = new URL("../../src/core/native-addon.js", import.meta.url).href;
    const worker = new Worker(code, { eval: true, workerData: { module, handle: operand.handle } });
    const [message] = await once(worker, "message");
    assert.match(String(message), /expected a bound handle/);
    await once(worker, "exit");
    kernels.release(operand);
  });
});

describe("native kernels check what they are given", () => {
  const matrix = (rows: number, columns: number): Tensor => zeros("f32", [rows, columns]);

  /** Each case must throw; the pattern names what is wrong. */
  function rejects(
    name: string,
    cases: (bind: (tensor: Tensor) => Operand) => readonly (readonly [RegExp, () => void])[],
  ): void {
    it(name, () => {
      scoped(kernels, (bind) => {
        for (const [pattern, call] of cases(bind)) assert.throws(call, pattern);
      });
    });
  }

  rejects("in norms", (bind) => {
    const [x, wide, weight] = [bind(matrix(2, 4)), bind(matrix(2, 5)), bind(zeros("f32", [4]))];
    return [
      [/out to have at least 3 rows/, () => kernels.rmsNorm(x, x, weight, 3, 0)],
      [/x to have 5 columns/, () => kernels.rmsNorm(wide, x, weight, 1, 0)],
      [/weight to have 4 elements/, () => kernels.rmsNorm(x, x, wide, 1, 0)],
      [/rows to be a whole number/, () => kernels.rmsNorm(x, x, weight, -1, 0)],
      [/rows to be a whole number/, () => kernels.rmsNorm(x, x, weight, 0.5, 0)],
      [/epsilon to be finite/, () => kernels.rmsNorm(x, x, weight, 1, Number.NaN)],
      [/weight to be f32/, () => kernels.rmsNorm(x, x, bind(zeros("bf16", [4])), 1, 0)],
      [/residual to have 4 columns/, () => kernels.addRmsNorm(x, wide, x, weight, 1, 0)],
      [/overlap residual/, () => kernels.addRmsNorm(x, x, bind(matrix(2, 4)), weight, 1, 0)],
    ];
  });

  rejects("in linear", (bind) => {
    const [x, out] = [bind(matrix(2, 4)), bind(matrix(2, 3))];
    const weight = { format: "dense", matrix: bind(zeros("bf16", [3, 4])) } as const;
    return [
      [/out to have at least 3 rows/, () => kernels.linear(out, x, weight, null, 3)],
      [/x to have 4 columns/, () => kernels.linear(out, out, weight, null, 1)],
      [/out to have at least 3 columns but it has 2/, () => kernels.linear(bind(matrix(2, 2)), x, weight, null, 1)],
      [/out to have at least 4 columns but it has 3/, () => kernels.linear(out, x, weight, null, 1, 1)],
      [/firstColumn to be a whole number/, () => kernels.linear(out, x, weight, null, 1, -1)],
      [/bias to have 3 elements/, () => kernels.linear(out, x, weight, bind(zeros("f32", [2])), 1)],
      [/overlap bias/, () => kernels.linear(out, x, weight, bind({ ...out.tensor, shape: [3] }), 1)],
      [
        /f32, f16 or bf16/,
        () => kernels.linear(out, x, { format: "dense", matrix: bind(zeros("i32", [3, 4])) }, null, 1),
      ],
      [/overlap x/, () => kernels.linear(x, x, { format: "dense", matrix: bind(matrix(4, 4)) }, null, 1)],
    ];
  });

  rejects("in linear and embedding with weights of blocks of codes", (bind) => {
    const [x, out, ids] = [bind(matrix(2, 64)), bind(matrix(2, 3)), bind(integers([2], [0, 1]))];
    const minimums = null;
    const codebook = bind(zeros("f32", [16]));
    const scales = bind(matrix(3, 2));
    const four = {
      format: "code4",
      codes: bind(zeros("u8", [3, 32])),
      codebook,
      scales,
      minimums,
      blockSize: 32,
    } as const;
    const codes = bind(zeros("i8", [3, 64]));
    const eight = { format: "int8", codes, scales, minimums, blockSize: 32, multiplier: 1 } as const;
    const apply = (weight: LinearWeight) => kernels.linear(out, x, weight, null, 2);
    const lookUp = (table: LinearWeight) => kernels.embedding(x, ids, table, 2, 0);
    const wrong: (readonly [RegExp, LinearWeight])[] = [
      [/codes to be u8/, { ...four, codes: eight.codes }],
      [/codes to be i8/, { ...eight, codes: four.codes }],
      [/codebook to have 16 elements but it has 6/, { ...four, codebook: four.scales }],
      [/multiplier to be finite/, { ...eight, multiplier: Number.NaN }],
    ];
    for (const weight of [four, eight]) {
      apply(weight);
      lookUp(weight);
      apply({ ...weight, scales: bind(zeros("f32", [6])), minimums: bind(zeros("f32", [6])) });
      wrong.push(
        [/scales to have 6 elements but it has 3/, { ...weight, scales: bind(zeros("f32", [3])) }],
        [/minimums to have 6 elements but it has 5/, { ...weight, minimums: bind(zeros("f32", [5])) }],
        [/scales to be f32 or f16 but it is bf16/, { ...weight, scales: bind(zeros("bf16", [3, 2])) }],
        [/minimums to be f32/, { ...weight, minimums: bind(zeros("f16", [3, 2])) }],
        [/scales to have 3 elements but it has 6/, { ...weight, blockSize: 64 }],
        [/divides 64 inputs but received 8/, { ...weight, blockSize: 8 }],
        [/divides 64 inputs but received 48/, { ...weight, blockSize: 48 }],
        [/divides 64 inputs but received 128/, { ...weight, blockSize: 128 }],
        [/blockSize to be a whole number/, { ...weight, blockSize: 0 }],
      );
    }
    const narrow = bind(matrix(2, 62));
    return [
      ...wrong.flatMap(([pattern, weight]) => [
        [pattern, () => apply(weight)] as const,
        [pattern, () => lookUp(weight)] as const,
      ]),
      ...[four, eight].flatMap((weight) => [
        [/x to have 64 columns/, () => kernels.linear(out, narrow, weight, null, 2)] as const,
        [/out to have at least 4 columns/, () => kernels.linear(out, x, weight, null, 2, 1)] as const,
        [/bias to have 3 elements/, () => kernels.linear(out, x, weight, scales, 2)] as const,
        [
          /overlap scales/,
          () => kernels.linear(scales, x, { ...weight, scales: bind(scales.tensor) }, null, 2),
        ] as const,
        [/out to have 64 columns/, () => kernels.embedding(narrow, ids, weight, 2, 0)] as const,
        [/out to have at least 3 rows/, () => kernels.linear(out, x, weight, null, 3)] as const,
      ]),
    ];
  });

  rejects("in headNorm", (bind) => {
    const [x, weight] = [bind(matrix(2, 10)), bind(zeros("f32", [4]))];
    return [
      [/x to have at least 3 rows/, () => kernels.headNorm(x, weight, 3, 0, 2, 4, 0)],
      [/columns up to 10/, () => kernels.headNorm(x, weight, 2, 3, 2, 4, 0)],
      [/weight to have at least 5/, () => kernels.headNorm(x, weight, 2, 0, 2, 5, 0)],
      [/headSize to be a whole number/, () => kernels.headNorm(x, weight, 2, 0, 2, 0, 0)],
      [/epsilon to be finite/, () => kernels.headNorm(x, weight, 2, 0, 2, 4, Number.NaN)],
      [/weight to be f32/, () => kernels.headNorm(x, bind(zeros("bf16", [4])), 2, 0, 2, 4, 0)],
    ];
  });

  rejects("in rope", (bind) => {
    const [x, table] = [bind(matrix(2, 10)), bind(matrix(4, 4))];
    const at = (...positions: number[]) => bind(integers([positions.length], positions));
    return [
      [/positions\[1\] to be from 0 to 3 but it is 4/, () => kernels.rope(x, at(0, 4), table, 2, 0, 2, 4)],
      [/positions\[0\] .* -1/, () => kernels.rope(x, at(-1), table, 1, 0, 2, 4)],
      [/columns up to 10/, () => kernels.rope(x, at(0), table, 1, 3, 2, 4)],
      [/even/, () => kernels.rope(x, at(0), bind(matrix(4, 3)), 1, 0, 1, 3)],
      [/positions to have at least 2/, () => kernels.rope(x, at(0), table, 2, 0, 2, 4)],
      [/headSize to be a whole number/, () => kernels.rope(x, at(0), table, 1, 0, 1, 0)],
      [/heads to be a whole number/, () => kernels.rope(x, at(0), table, 1, 0, 2 ** 31, 4)],
    ];
  });

  rejects("in embedding, gatherRows, siluMul and argmax", (bind) => {
    const [out, ids, table] = [bind(matrix(2, 4)), bind(integers([2], [0, 5])), bind(matrix(3, 4))];
    const dense = { format: "dense", matrix: table } as const;
    return [
      [/out to have at least 3 rows/, () => kernels.embedding(out, bind(integers([3], [0, 1, 2])), dense, 3, 0)],
      [/out to have 4 columns/, () => kernels.embedding(bind(matrix(2, 5)), ids, dense, 2, 0)],
      [/ids to have at least 3/, () => kernels.embedding(bind(matrix(3, 4)), ids, dense, 3, 0)],
      [/overlap table/, () => kernels.embedding(table, ids, dense, 2, 0)],
      [/firstId to be a whole number/, () => kernels.embedding(out, ids, dense, 2, -1)],
      [/indices\[1\] to be from 0 to 2 but it is 5/, () => kernels.gatherRows(out, table, ids, 0, 2)],
      [/at least 3 elements/, () => kernels.gatherRows(out, table, ids, 1, 2)],
      [/overlap source/, () => kernels.gatherRows(out, out, ids, 0, 1)],
      [/source to be f32/, () => kernels.gatherRows(out, ids, ids, 0, 1)],
      [/gateUp to have 8 columns/, () => kernels.siluMul(out, table, 1)],
      [/at most 4 columns/, () => kernels.argmax(bind(zeros("f32", [2])), ids, out, 1, 5, 0)],
      [/ids below 2\^31/, () => kernels.argmax(bind(zeros("f32", [2])), ids, out, 1, 4, 2 ** 31 - 2)],
    ];
  });

  rejects("in writeKv and attention", (bind) => {
    const shape = [3, 2, 4, 8];
    const cache = {
      keys: bind(zeros("bf16", shape)),
      values: bind(zeros("bf16", shape)),
      scales: null,
      kvHeads: 2,
      headSize: 8,
      blockSize: 4,
    };
    const [out, q] = [bind(matrix(2, 32)), bind(matrix(2, 40))];
    const numbers = (...values: number[]) => bind(integers([values.length], values));
    const map = numbers(0, 0, 1, 1);
    const attend = (starts: number[], lengths: number[], blocks: number[], heads = map, window = 0) => {
      const blockTables = bind(integers([lengths.length, blocks.length / lengths.length], blocks));
      const batch = { queryStarts: numbers(...starts), contextLengths: numbers(...lengths), blockTables };
      const options = {
        heads: 4,
        kvHeads: 2,
        kvHeadOf: heads,
        headSize: 8,
        scale: 1,
        slidingWindow: window,
        softCap: 0,
      };
      kernels.attention(out, q, cache, batch, lengths.length, options);
    };
    const codes = { ...cache, keys: bind(zeros("i8", shape)), values: bind(zeros("i8", shape)) };
    kernels.writeKv({ ...codes, scales: bind(zeros("f32", [3, 2, 2, 4])) }, q, numbers(11), 1, 0, 16);
    attend([0, 1], [9], [0, 1, 2]);
    attend([0, 1], [9], [-1, -1, 2], map, 1);
    return [
      [/slots\[0\] to be from 0 to 11/, () => kernels.writeKv(cache, q, numbers(12), 1, 0, 16)],
      [/slots\[0\] .* -1/, () => kernels.writeKv(cache, q, numbers(-1), 1, 0, 16)],
      [/columns up to 40/, () => kernels.writeKv(cache, q, numbers(0), 1, 0, 25)],
      [/cache of \[blocks, 2, 8, 8\]/, () => kernels.writeKv({ ...cache, blockSize: 8 }, q, numbers(0), 1, 0, 16)],
      [
        /shape and dtype of keys/,
        () => kernels.writeKv({ ...cache, values: bind(zeros("f16", shape)) }, q, numbers(0), 1, 0, 16),
      ],
      [
        /scales with keys of i8 and with no others but keys are i8/,
        () => kernels.writeKv(codes, q, numbers(0), 1, 0, 16),
      ],
      [
        /scales with keys of i8 and with no others but keys are bf16/,
        () => kernels.writeKv({ ...cache, scales: bind(zeros("f32", [3, 2, 2, 4])) }, q, numbers(0), 1, 0, 16),
      ],
      [
        /scales of \[3, 2, 2, 4\] but they are \[3, 8\]/,
        () => kernels.writeKv({ ...codes, scales: bind(zeros("f32", [3, 2, 4])) }, q, numbers(0), 1, 0, 16),
      ],
      [
        /keys to be f32, f16, bf16 or i8 but they are u8/,
        () => kernels.writeKv({ ...cache, keys: bind(zeros("u8", shape)) }, q, numbers(0), 1, 0, 16),
      ],
      [/blockTables\[2\] to be from 0 to 2 but it is 3/, () => attend([0, 1], [9], [0, 1, 3])],
      [/blockTables\[0\] .* -1/, () => attend([0, 1], [9], [-1, 1, 2], map, 8)],
      [/at least 4 columns/, () => attend([0, 1], [13], [0, 1, 2])],
      [/contextLengths\[0\] to be at least 2 but it is 1/, () => attend([0, 2], [1], [0])],
      [/queryStarts not to decrease/, () => attend([1, 0], [1], [0])],
      [/queryStarts\[0\] to be at least 0/, () => attend([-1, 0], [1], [0])],
      [/at most 2 queries but received 3/, () => attend([0, 3], [3], [0])],
      [/kvHeadOf\[3\] to be from 0 to 1 but it is 2/, () => attend([0, 1], [1], [0], numbers(0, 0, 1, 2))],
      [/kvHeadOf not to decrease/, () => attend([0, 1], [1], [0], numbers(0, 1, 0, 1))],
      [/kvHeadOf to have at least 4/, () => attend([0, 1], [1], [0], numbers(0, 1, 1))],
    ];
  });
});

describe("memory functions of the addon", () => {
  it("tell where a view lies, relative to a power of two", () => {
    const buffer = new SharedArrayBuffer(256);
    const base = addon.addressModulo(new Uint8Array(buffer), 4096);
    assert.equal(addon.addressModulo(new Uint8Array(buffer, 100), 4096), (base + 100) % 4096);
    assert.throws(() => addon.addressModulo(new Uint8Array(buffer), 100), /power of two/);
    assert.throws(() => addon.addressModulo(new Uint8Array(buffer), 0), RangeError);
  });

  it("advise and touch without changing a byte of a zeroed view", () => {
    const buffer = new SharedArrayBuffer(4 * 1024 * 1024);
    assert.equal(typeof addon.adviseHugePages(new Uint8Array(buffer)), "boolean");
    assert.equal(addon.adviseHugePages(new Uint8Array(buffer, 1, 100)), false);
    addon.touch(new Uint8Array(buffer, 3, 100000));
    addon.touch(new Uint8Array(0));
    assert.ok(new Uint8Array(buffer).every((byte) => byte === 0));
  });

  it("bind tensors of no elements", () => {
    const operand = kernels.bind(zeros("f32", [0, 7]));
    assert.deepEqual([operand.rows, operand.columns, bytesOf(operand.tensor).length], [0, 7, 0]);
    kernels.release(operand);
  });
});
