import assert from "node:assert/strict";
import fc from "fast-check";
import { InternalError } from "../../src/core/errors.js";
import { BlockPool, BlockTable } from "../../src/engine/kv-cache.js";

const blocksOf = (table: BlockTable): number[] => Array.from({ length: table.length }, (_, i) => table.at(i));

describe("the block pool", () => {
  it("gives a table just the blocks that its tokens need", () => {
    const pool = new BlockPool(10, 4);
    const table = new BlockTable();
    assert.deepEqual(
      [0, 1, 4, 5, 40].map((tokens) => pool.blocksFor(tokens)),
      [0, 1, 1, 2, 10],
    );
    pool.grow(table, 4);
    assert.deepEqual([table.length, pool.freeBlocks], [1, 9]);
    assert.equal(pool.missing(table, 4), 0);
    assert.equal(pool.missing(table, 5), 1);
    pool.grow(table, 9);
    assert.deepEqual([table.length, pool.freeBlocks], [3, 7]);
    pool.grow(table, 2);
    assert.deepEqual([table.length, pool.freeBlocks], [3, 7]);
    pool.release(table);
    assert.deepEqual([table.length, pool.freeBlocks], [0, 10]);
  });

  it("never gives a block to two tables and loses none, whatever the order of growing and releasing", () => {
    const operation = fc.record({ table: fc.nat(4), tokens: fc.nat(60), release: fc.boolean() });
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 5 }),
        fc.array(operation),
        (n, size, ops) => {
          const pool = new BlockPool(n, size);
          const tables = Array.from({ length: 5 }, () => new BlockTable());
          for (const { table: index, tokens, release } of ops) {
            const table = tables[index] ?? assert.fail();
            const before = blocksOf(table);
            if (release) pool.release(table);
            else if (pool.missing(table, tokens) <= pool.freeBlocks) {
              pool.grow(table, tokens);
              assert.deepEqual(blocksOf(table).slice(0, before.length), before, "growing moves no block");
              assert.ok(table.length * size >= tokens);
            }
            const held = tables.flatMap(blocksOf);
            assert.equal(new Set(held).size, held.length);
            assert.ok(held.every((block) => block >= 0 && block < n));
            assert.equal(held.length + pool.freeBlocks, n);
          }
        },
      ),
    );
  });

  it("notices being used wrongly instead of corrupting a cache", () => {
    const pool = new BlockPool(2, 4);
    const table = new BlockTable();
    assert.throws(() => pool.grow(table, 9), InternalError);
    pool.grow(table, 8);
    assert.throws(() => table.at(2), InternalError);
    const forged = new BlockTable();
    forged.append(1);
    pool.release(table);
    assert.throws(() => pool.release(forged), InternalError);
  });
});
