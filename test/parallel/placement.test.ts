import assert from "node:assert/strict";
import fc from "fast-check";
import type { MachineTopology } from "../../src/core/machine-topology.js";
import {
  checkThreadsPerRank,
  type Placement,
  type PlacementRequest,
  placeRanks,
} from "../../src/parallel/placement.js";

/** A machine of so many nodes, cores a node and CPUs a core, numbered as Linux does: first one of every core. */
function machine(nodes: number, coresEach: number, cpusEach: number, quota: number | null = null): MachineTopology {
  const cores = nodes * coresEach;
  const cpus = Array.from({ length: cores * cpusEach }, (_, id) => {
    const core = id % cores;
    return { id, core: `${core}`, node: Math.floor(core / coresEach) };
  });
  return { cpus, quota, known: true };
}

const SMALL = machine(1, 2, 1);
const LARGE = machine(2, 64, 2);

function place(topology: MachineTopology, ranks: number, request: Partial<PlacementRequest> = {}): Placement {
  return placeRanks(topology, { ranks, threadsPerRank: "auto", ...request });
}

const range = (begin: number, end: number): number[] => Array.from({ length: end - begin }, (_, i) => begin + i);

describe("placing ranks", () => {
  it("shares the cores among the ranks, at least one thread each", () => {
    const threads = (topology: MachineTopology, ranks: number) => place(topology, ranks).threadsPerRank;
    assert.deepEqual(
      [1, 2, 3, 64].map((ranks) => threads(SMALL, ranks)),
      [2, 1, 1, 1],
    );
    assert.deepEqual(
      [1, 2, 3, 8, 64].map((ranks) => threads(LARGE, ranks)),
      [128, 64, 42, 16, 2],
    );
    // Two CPUs of one core do the work of one.
    assert.equal(threads(machine(1, 1, 2), 1), 1);
  });

  it("takes no more threads than the quota has time for", () => {
    const threads = (quota: number, ranks: number) => place(machine(1, 64, 2, quota), ranks).threadsPerRank;
    assert.deepEqual([threads(8, 1), threads(8, 2), threads(1.5, 1), threads(0.5, 1)], [8, 4, 1, 1]);
  });

  it("pins each thread to a core of its own where the ranks use the whole machine", () => {
    const one = place(SMALL, 1);
    assert.equal(one.pinning, "threads");
    assert.deepEqual(one.places, [{ cpus: [0, 1], node: null }]);
    const two = place(SMALL, 2);
    assert.deepEqual(
      two.places.map(({ cpus }) => cpus),
      [[0], [1]],
    );
  });

  it("gives every rank a node of its own, its cores and its memory", () => {
    assert.deepEqual(place(LARGE, 2).places, [
      { cpus: range(0, 64), node: 0 },
      { cpus: range(64, 128), node: 1 },
    ]);
    const four = place(LARGE, 4);
    assert.deepEqual(
      four.places.map(({ cpus, node }) => [cpus?.[0], node]),
      [
        [0, 0],
        [32, 0],
        [64, 1],
        [96, 1],
      ],
    );
    // A rank on several nodes has no memory that is nearest.
    assert.deepEqual(place(LARGE, 1).places, [{ cpus: range(0, 128), node: null }]);
    const ragged = place(LARGE, 3);
    assert.deepEqual(
      ragged.places.map(({ node }) => node),
      [0, 1, null],
    );
  });

  it("leaves the choice of cores to the system where some are to spare, but keeps ranks to their nodes", () => {
    assert.equal(place(SMALL, 1, { threadsPerRank: 1 }).pinning, "none");
    const spare = place(LARGE, 2, { threadsPerRank: 16 });
    assert.equal(spare.pinning, "nodes");
    assert.deepEqual(spare.places[1], { cpus: [...range(64, 128), ...range(192, 256)], node: 1 });
    assert.deepEqual(place(SMALL, 1, { threadsPerRank: 1, pinning: true }).places, [{ cpus: [0], node: null }]);
  });

  it("uses the second CPU of each core when the first ones do not suffice", () => {
    const { places } = place(machine(1, 2, 2), 2, { threadsPerRank: 2, pinning: true });
    assert.deepEqual(
      places.map(({ cpus }) => cpus),
      [
        [0, 2],
        [1, 3],
      ],
    );
  });

  it("pins nothing when it is told not to, when threads do not fit, and when others may be on the same CPUs", () => {
    const cases: readonly [MachineTopology, Partial<PlacementRequest>, RegExp][] = [
      [SMALL, { pinning: false }, /off/],
      [SMALL, { threadsPerRank: 3, pinning: true }, /more threads than CPUs/],
      [SMALL, { occupied: true, pinning: true }, /another group/],
      [{ ...SMALL, known: false }, { pinning: true }, /does not say/],
      [machine(1, 8, 1, 4), {}, /quota/],
      [machine(1, 8, 1, 4), { threadsPerRank: 5, pinning: true }, /more threads than CPUs/],
    ];
    for (const [topology, request, reason] of cases) {
      const placement = place(topology, 1, request);
      assert.equal(placement.pinning, "none");
      assert.match(placement.reason, reason);
      assert.deepEqual(placement.places, [{ cpus: null, node: null }]);
    }
  });

  it("never puts two threads on one CPU, nor a rank outside of the CPUs that are allowed", () => {
    const machines = fc
      .record({
        nodes: fc.integer({ min: 1, max: 4 }),
        cores: fc.integer({ min: 1, max: 9 }),
        cpus: fc.integer({ min: 1, max: 2 }),
        quota: fc.option(fc.double({ min: 0.1, max: 40, noNaN: true })),
        removed: fc.array(fc.nat(80)),
      })
      .map(({ nodes, cores, cpus, quota, removed }) => {
        const whole = machine(nodes, cores, cpus, quota);
        const left = whole.cpus.filter(({ id }) => !removed.includes(id));
        return left.length === 0 ? whole : { ...whole, cpus: left };
      });
    const requests = fc.record({
      ranks: fc.integer({ min: 1, max: 9 }),
      threadsPerRank: fc.oneof(fc.constant("auto" as const), fc.integer({ min: 1, max: 9 })),
      pinning: fc.constantFrom(undefined, true, false),
      occupied: fc.boolean(),
    });
    fc.assert(
      fc.property(machines, requests, (topology, request) => {
        const placement = placeRanks(topology, request);
        assert.equal(placement.places.length, request.ranks);
        const allowed = new Map(topology.cpus.map(({ id, node }) => [id, node]));
        const lists = placement.places.map(({ cpus }) => cpus ?? []);
        for (const id of lists.flat()) assert.ok(allowed.has(id));
        for (const { cpus, node } of placement.places) {
          if (node !== null) for (const id of cpus ?? []) assert.equal(allowed.get(id), node);
        }
        if (placement.pinning !== "threads") return;
        for (const list of lists) assert.equal(list.length, placement.threadsPerRank);
        assert.equal(new Set(lists.flat()).size, lists.flat().length);
      }),
      { numRuns: 500 },
    );
  });
});

describe("a number of threads", () => {
  it("is auto or a whole number", () => {
    for (const value of ["auto", 1, 1024]) assert.equal(checkThreadsPerRank(value), value);
    for (const value of [0, -1, 1.5, 1025, Number.NaN, "2", null, {}]) {
      assert.throws(() => checkThreadsPerRank(value), { name: "OptionError", code: "INVALID_OPTION" });
    }
  });
});
