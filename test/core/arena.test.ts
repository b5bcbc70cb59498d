import assert from "node:assert/strict";
import { Worker } from "node:worker_threads";
import { Arena, ArenaAllocator, HUGE_PAGE_BYTES, TENSOR_ALIGNMENT } from "../../src/core/arena.js";
import { InternalError } from "../../src/core/errors.js";
import { nativeAddon } from "../../src/core/native-addon.js";
import { bytesOf, f32Of, tensorBytes } from "../../src/core/tensor.js";

/** Address of a tensor's first byte modulo `modulo`, which only the addon can tell. */
function addressModulo(view: Uint8Array, modulo: number): number {
  const native = nativeAddon();
  if (!native.loaded) throw new Error(native.reason);
  return native.addon.addressModulo(view, modulo);
}

describe("arena", () => {
  it("gives tensors of their own, zeroed, each on a 64-byte boundary of the address space", function () {
    if (!nativeAddon().loaded) this.skip();
    const arena = Arena.create("test", 4096);
    const tensors = [
      arena.allocate("a", "u8", [3]),
      arena.allocate("b", "f32", [2, 5]),
      arena.allocate("c", "bf16", [7]),
    ];
    for (const tensor of tensors) {
      assert.equal(addressModulo(bytesOf(tensor), TENSOR_ALIGNMENT), 0);
      assert.ok(bytesOf(tensor).every((byte) => byte === 0));
    }
    for (const [i, tensor] of tensors.entries()) bytesOf(tensor).fill(i + 1);
    for (const [i, tensor] of tensors.entries()) assert.ok(bytesOf(tensor).every((byte) => byte === i + 1));
  });

  it("starts on a 2 MiB boundary when it is large enough for huge pages", function () {
    if (!nativeAddon().loaded) this.skip();
    const arena = Arena.create("large", 3 * HUGE_PAGE_BYTES);
    assert.equal(addressModulo(new Uint8Array(arena.buffer, arena.base), HUGE_PAGE_BYTES), 0);
  });

  it("refuses what does not fit, and shapes that are impossible", () => {
    const arena = Arena.create("small", 256);
    arena.allocate("a", "f32", [32]);
    assert.throws(() => arena.allocate("b", "f32", [33]), InternalError);
    assert.throws(() => arena.allocate("c", "f32", [2 ** 40, 2 ** 40]), InternalError);
    assert.throws(() => Arena.create("negative", -1), InternalError);
  });

  it("is the same memory in another thread", async () => {
    const arena = Arena.create("shared", 1024);
    const tensor = arena.allocate("x", "f32", [4]);
    const source = `
      const { workerData } = require("node:worker_threads");
      new Float32Array(workerData.buffer, workerData.byteOffset, 4).set([1, 2, 3, 4]);`;
    const { byteOffset } = tensor;
    const worker = new Worker(source, { eval: true, workerData: { buffer: arena.handle.buffer, byteOffset } });
    await new Promise((resolve) => worker.once("exit", resolve));
    assert.deepEqual([...f32Of(tensor)], [1, 2, 3, 4]);
    const same = { ...tensor, arena: Arena.from(arena.handle) };
    assert.deepEqual([...f32Of(same)], [1, 2, 3, 4]);
    assert.throws(() => same.arena.allocate("y", "u8", [1]), InternalError, "its creator alone allocates from it");
  });

  it("an allocator adds arenas as they fill, and gives large tensors one of their own", () => {
    const allocator = new ArenaAllocator("test", 1024);
    const small = allocator.allocate("a", "u8", [512]);
    const large = allocator.allocate("b", "u8", [4096]);
    const next = allocator.allocate("c", "u8", [512]);
    const overflow = allocator.allocate("d", "u8", [512]);
    assert.equal(small.arena, next.arena, "a large tensor does not end a chunk");
    assert.notEqual(large.arena, small.arena);
    assert.notEqual(overflow.arena, small.arena);
    assert.equal(tensorBytes(large), 4096);
    assert.equal(allocator.usedBytes, 512 + 4096 + 512 + 512);
  });
});
