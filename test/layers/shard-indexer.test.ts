/** The shard indexer: what it is asked, what it is told, and that nothing is computed for parameters without one. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { ShardloomError } from "../../src/core/errors.js";
import type { Parameter } from "../../src/layers/parameter.js";
import { type OffsetScope, originalOffsets, partsHeld, ShardPlacement } from "../../src/layers/shard-placement.js";
import { rangeSize, splitHeads } from "../../src/parallel/partition.js";
import type {
  LinearLayer,
  LinearPart,
  ParameterSpec,
  ShardIndexer,
  ShardIndexQuery,
} from "../../src/quantization/contract.js";
import { contextOf, labelled, rowLabels } from "./layer-fixture.js";

const code = (expected: string) => (error: unknown) => error instanceof ShardloomError && error.code === expected;

/** A QKV layer of so many heads, as rank `rank` of `worldSize` sees it. */
function qkvLayer(
  heads: number,
  kvHeads: number,
  headSize: number,
  inputSize: number,
  rank: number,
  worldSize: number,
): LinearLayer {
  const own = splitHeads(heads, kvHeads, worldSize)[rank];
  if (own === undefined) throw new Error("no such rank");
  let localOffset = 0;
  const part = (shardId: "q" | "k" | "v", total: number, range: { start: number; end: number }): LinearPart => {
    const rows = { start: range.start * headSize, end: range.end * headSize };
    const here = { prefix: `attn.${shardId}_proj`, shardId, outputSize: total * headSize, rows, localOffset };
    localOffset += rangeSize(rows);
    return here;
  };
  const parts = [part("q", heads, own.queryHeads), part("k", kvHeads, own.kvHeads), part("v", kvHeads, own.kvHeads)];
  return {
    prefix: "attn.qkv_proj",
    kind: "qkv",
    inputSize,
    inputs: { start: 0, end: inputSize },
    parts,
    outputSizePerPartition: localOffset,
    rank,
    worldSize,
    dtype: "f32",
  };
}

/** vLLM's in-tree arithmetic for bitsandbytes (`adjust_bitsandbytes_4bit_shard`): only ratios of the offsets matter. */
const upstreamIndexer: ShardIndexer = ({ originalOffsets: offsets, shardId, storageExtent }) => {
  const map = offsets();
  const total = map.get("total")?.size ?? 0;
  const own = map.get(String(shardId)) ?? { offset: 0, size: 0 };
  return {
    offset: Math.floor((own.offset * storageExtent) / total),
    size: Math.floor((own.size * storageExtent) / total),
  };
};

/** Storage of 4-bit codes as on disk: `[rows * inputs / 2, 1]`. */
function packed(layer: LinearLayer, shardIndexer?: ShardIndexer, isSharded = false): Parameter {
  const shape = [(layer.outputSizePerPartition * layer.inputSize) / 2, 1];
  const spec: ParameterSpec = {
    name: "weight",
    dtype: "f32",
    shape,
    outputDim: 0,
    inputDim: null,
    isSharded,
    ...(shardIndexer === undefined ? {} : { shardIndexer }),
  };
  return contextOf(layer.rank, layer.worldSize).createParameter(layer.prefix, spec);
}

function loadParts(placement: ShardPlacement, parameter: Parameter, layer: LinearLayer, bytesPerRow: number): void {
  for (const part of layer.parts) {
    const source = labelled(`${part.prefix}.weight`, part.outputSize * bytesPerRow, 1);
    placement.load(parameter, source, part, { fused: false, base: 0, total: part.outputSize });
  }
}

describe("shard indexer", () => {
  it("without one, original offsets are computed zero times; with one that asks, once a layer for each kind of place", () => {
    const layer = qkvLayer(4, 2, 2, 2, 1, 2);
    const calls: OffsetScope[] = [];
    const counting = (counted: LinearLayer, scope: OffsetScope) => {
      calls.push(scope);
      return originalOffsets(counted, scope);
    };
    const plain = contextOf(1, 2).createParameter(layer.prefix, {
      name: "weight",
      dtype: "f32",
      shape: [layer.outputSizePerPartition, 2],
      outputDim: 0,
      inputDim: 1,
    });
    const without = new ShardPlacement(layer, counting);
    for (const part of layer.parts) {
      without.load(plain, labelled(part.prefix, part.outputSize, 2), part, {
        fused: false,
        base: 0,
        total: part.outputSize,
      });
    }
    assert.deepEqual(calls, []);

    const silent = new ShardPlacement(layer, counting);
    loadParts(
      silent,
      packed(layer, ({ extent }) => extent),
      layer,
      1,
    );
    assert.deepEqual(calls, [], "an indexer that does not ask");

    const asking = new ShardPlacement(layer, counting);
    const indexer: ShardIndexer = ({ extent, originalOffsets: offsets }) => {
      offsets();
      return extent;
    };
    loadParts(asking, packed(layer, indexer), layer, 1);
    loadParts(asking, packed(layer, indexer), layer, 1);
    assert.deepEqual(calls, ["local"], "two parameters of three shards each");
    asking.load(packed(layer, indexer), labelled("fused", 16, 1), layer.parts[0] ?? assert.fail(), {
      fused: true,
      base: 0,
      total: 16,
    });
    assert.deepEqual(calls, ["local", "global"]);
  });

  it("upstream's arithmetic gives upstream's numbers: R 1572864, T 1536 -> 0, 1048576, 1310720", () => {
    const offsets = originalOffsets(qkvLayer(32, 8, 64, 2048, 1, 2), "local");
    const ask = (shardId: "q" | "k" | "v") =>
      upstreamIndexer({
        of: "destination",
        shardId,
        extent: { offset: 0, size: 0 },
        storageExtent: 1572864,
        originalOffsets: () => offsets,
        rank: 1,
        worldSize: 2,
        sourceIsLocal: true,
      });
    assert.deepEqual(ask("q"), { offset: 0, size: 1048576 });
    assert.deepEqual(ask("k"), { offset: 1048576, size: 262144 });
    assert.deepEqual(ask("v"), { offset: 1310720, size: 262144 });
  });

  it("hands a fused layer's offsets over from total heads, a single shard's from this rank's: Phi-3 at 2 ranks", () => {
    const layer = qkvLayer(32, 32, 96, 3072, 1, 2);
    assert.deepEqual(originalOffsets(layer, "global").get("k"), { offset: 3072, size: 3072 });
    assert.deepEqual(originalOffsets(layer, "global").get("total"), { offset: 0, size: 9216 });
    assert.deepEqual(originalOffsets(layer, "local").get("k"), { offset: 1536, size: 1536 });
  });

  it("is asked for destination and source, told rank, world size and both extents, and steers what is read", () => {
    const layer = qkvLayer(4, 2, 2, 4, 1, 2);
    const queries: ShardIndexQuery[] = [];
    const rowBytes = layer.inputSize / 2;
    const parameter = packed(layer, (query) => {
      queries.push(query);
      return { offset: query.extent.offset * rowBytes, size: query.extent.size * rowBytes };
    });
    const placement = new ShardPlacement(layer);
    const fused = labelled("fused", 16 * rowBytes, 1);
    let base = 0;
    for (const part of layer.parts) {
      placement.load(parameter, fused, part, { fused: true, base, total: 16 });
      base += part.outputSize;
    }
    // Rows 4..7 of q, 10..11 of k (8 + 2), 14..15 of v (12 + 2), two storage elements each.
    assert.deepEqual(rowLabels(parameter), [8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31]);
    assert.deepEqual(
      queries.slice(0, 2).map(({ of, shardId, extent, storageExtent, rank, worldSize, sourceIsLocal }) => {
        return { of, shardId, extent, storageExtent, rank, worldSize, sourceIsLocal };
      }),
      [
        {
          of: "destination",
          shardId: "q",
          extent: { offset: 0, size: 4 },
          storageExtent: 16,
          rank: 1,
          worldSize: 2,
          sourceIsLocal: false,
        },
        {
          of: "source",
          shardId: "q",
          extent: { offset: 4, size: 4 },
          storageExtent: 32,
          rank: 1,
          worldSize: 2,
          sourceIsLocal: false,
        },
      ],
    );
  });

  it("a hook that throws, or returns what is no extent, is an error that names the parameter and the rank", () => {
    const layer = qkvLayer(2, 2, 2, 2, 0, 1);
    const loadWith = (indexer: ShardIndexer) => () =>
      loadParts(new ShardPlacement(layer), packed(layer, indexer), layer, 1);
    const broken = () => {
      throw new TypeError("cannot read properties of undefined");
    };
    assert.throws(
      loadWith(broken),
      (error: unknown) => code("PLUGIN_FAILED")(error) && /qkv_proj\.weight.*rank 0/.test(String(error)),
    );
    for (const extent of [
      { offset: -1, size: 1 },
      { offset: 0.5, size: 1 },
      { offset: 0, size: Number.NaN },
      { offset: 0, size: 2 ** 40 },
      // What only a plugin in plain JavaScript can return.
      ...["null", "{}", '"0"', '{"offset":"0","size":1}'].map((json) => JSON.parse(json)),
    ]) {
      assert.throws(
        loadWith(() => extent),
        code("INVALID_EXTENT"),
        JSON.stringify(extent),
      );
    }
  });

  it("a source that does not fill its destination is refused", () => {
    const layer = qkvLayer(2, 2, 2, 2, 0, 1);
    const shrinking: ShardIndexer = ({ of, extent }) =>
      of === "source" ? { offset: extent.offset, size: extent.size - 1 } : extent;
    assert.throws(
      () => loadParts(new ShardPlacement(layer), packed(layer, shrinking), layer, 1),
      code("SHAPE_MISMATCH"),
    );
  });

  it("property: ranks reassemble a fused tensor through an indexer, whatever the heads, ranks and row lengths", () => {
    const cases = fc.record({
      kvHeads: fc.integer({ min: 1, max: 4 }),
      group: fc.integer({ min: 1, max: 4 }),
      headSize: fc.integer({ min: 1, max: 4 }),
      rowBytes: fc.integer({ min: 1, max: 3 }),
      worldSize: fc.integer({ min: 1, max: 8 }),
    });
    fc.assert(
      fc.property(cases, ({ kvHeads, group, headSize, rowBytes, worldSize }) => {
        const heads = kvHeads * group;
        fc.pre(worldSize <= heads);
        const seen = new Set<number>();
        for (let rank = 0; rank < worldSize; rank++) {
          const layer = qkvLayer(heads, kvHeads, headSize, 2 * rowBytes, rank, worldSize);
          const parameter = packed(layer, ({ extent }) => ({
            offset: extent.offset * rowBytes,
            size: extent.size * rowBytes,
          }));
          const total = (heads + 2 * kvHeads) * headSize;
          const fused = labelled("fused", total * rowBytes, 1);
          const placement = new ShardPlacement(layer);
          let base = 0;
          for (const part of partsHeld(parameter, layer)) {
            placement.load(parameter, fused, part, { fused: true, base, total });
            base += part.outputSize;
          }
          assert.deepEqual(parameter.missing(), []);
          const labels = rowLabels(parameter);
          layer.parts.forEach((part, i) => {
            const start = layer.parts.slice(0, i).reduce((sum, p) => sum + p.outputSize, 0) + part.rows.start;
            const local = labels.slice(
              part.localOffset * rowBytes,
              (part.localOffset + rangeSize(part.rows)) * rowBytes,
            );
            assert.deepEqual(
              local,
              local.map((_, j) => start * rowBytes + j),
            );
          });
          for (const label of labels) seen.add(label);
        }
        assert.equal(seen.size, (heads + 2 * kvHeads) * headSize * rowBytes);
      }),
      { numRuns: 200 },
    );
  });
});
