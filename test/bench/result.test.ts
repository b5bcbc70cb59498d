import assert from "node:assert/strict";
import { betterOf } from "../../bench/frame/best-limits.js";
import { parseOptions, UsageError } from "../../bench/frame/options.js";
import { type BenchResult, makeRow, RESULT_VERSION, shareOf } from "../../bench/frame/result.js";
import { formatResult } from "../../bench/frame/table.js";
import { compareNextTokens } from "../../bench/models/validation.js";

const row = makeRow({
  subject: { model: "m", tokens: 8 },
  unit: "tokens/s",
  better: "higher",
  sampled: [
    { name: "tp1", peer: false, samples: [10, 12, 11] },
    { name: "tp2", peer: false, samples: [20, 24, 22] },
    { name: "other", peer: true, samples: [10, 10, 10] },
  ],
  limitOf: (rate) => shareOf("DRAM read", rate, 40, "GB/s"),
  validated: ["tp1: equal"],
});

const result: BenchResult = {
  schema: "shardloom-bench",
  version: RESULT_VERSION,
  bench: "decode",
  date: "2026-01-01T00:00:00.000Z",
  note: "",
  machine: {
    cpu: "a CPU",
    cpuModel: null,
    cpus: 2,
    memoryBytes: 2 ** 34,
    system: "linux",
    node: "v20",
    kernels: "avx2",
    load: 0,
  },
  limits: {
    isa: "avx2",
    threads: 2,
    readGBs: { one: 20, all: 40 },
    fmaGflops: { one: 100, all: 200 },
    dotInt8Gops: { one: 150, all: 300 },
    dotBf16Gflops: null,
    exchange: { cacheLineNs: 50, wakeMicros: 5, forkJoinMicros: 1 },
  },
  peers: [
    { name: "other", version: "1", absent: null },
    { name: "third", version: null, absent: "not installed" },
  ],
  rows: [row],
};

describe("a bench's result", () => {
  it("compares each of ours with each peer, and none of ours with another", () => {
    assert.deepEqual(
      row.ratios.map(({ ours, peer, median, min, max }) => ({ ours, peer, median, min, max })),
      [
        { ours: "tp1", peer: "other", median: 1.1, min: 1, max: 1.2 },
        { ours: "tp2", peer: "other", median: 2.2, min: 2, max: 2.4 },
      ],
    );
    assert.deepEqual(row.contestants[1]?.limit, {
      name: "DRAM read",
      value: 40,
      unit: "GB/s",
      achieved: 22,
      share: 0.55,
    });
  });

  it("claims no share of a limit that was not measured", () => {
    assert.equal(shareOf("f32 peak", 100, undefined, "GFLOP/s"), null);
  });

  it("survives being written as JSON", () => {
    assert.deepEqual(JSON.parse(JSON.stringify(result)), result);
  });

  it("is printed with its machine, limits, absent peers, and a line a contestant", () => {
    const text = formatResult(result);
    for (const part of [
      "a CPU, 2 CPUs, 16 GiB",
      "limits (1 / 2 threads, avx2): read 20.0 / 40.0 GB/s",
      "without third: not installed",
    ]) {
      assert.ok(text.includes(part), `${part} is missing in\n${text}`);
    }
    assert.match(
      text,
      /m +8 +tp2 +22\.0 +20\.0 +24\.0 +tokens\/s +55\.0% of 40\.0 GB\/s DRAM read +2\.20 \(2\.00-2\.40\)/,
    );
  });
});

describe("limits of the machine", () => {
  it("are the best of what was measured, each by itself", () => {
    const { limits } = result;
    if (limits === null) return assert.fail("the example has limits");
    const other = {
      ...limits,
      readGBs: { one: 10, all: 50 },
      exchange: { cacheLineNs: 40, wakeMicros: 9, forkJoinMicros: 1 },
    };
    const best = betterOf(limits, other);
    assert.deepEqual(best.readGBs, { one: 20, all: 50 });
    assert.deepEqual(best.exchange, { cacheLineNs: 40, wakeMicros: 5, forkJoinMicros: 1 });
    assert.deepEqual(best, betterOf(other, limits));
  });
});

describe("validation of contestants", () => {
  const reference = [
    { id: 1, logprob: -1 },
    { id: 2, logprob: -2 },
  ];

  it("measures how far likely tokens are off, and how many are the same", () => {
    assert.deepEqual(compareNextTokens(reference, reference), { common: 1, mean: 0 });
    assert.deepEqual(compareNextTokens([{ id: 2, logprob: -2.5 }], reference), { common: 0.5, mean: 0.5 });
    assert.equal(compareNextTokens([{ id: 3, logprob: -1 }], reference).common, 0);
  });
});

describe("options of benches", () => {
  const benches = ["decode", "prefill"];

  it("have defaults, and take models and weights by name", () => {
    const options = parseOptions(["decode", "--model", "llama-1b", "--weights", "Q4_0", "--tp", "1,2"], benches);
    assert.equal(options.models[0]?.hidden, 2048);
    assert.deepEqual(options.weights, ["Q4_0"]);
    assert.deepEqual(options.tp, [1, 2]);
    assert.deepEqual(options.threadsPerRank, ["auto"]);
    assert.equal(options.rounds, 5);
  });

  it("that are wrong are refused with what was expected", () => {
    const wrong: readonly (readonly string[])[] = [
      [],
      ["decoding"],
      ["decode", "prefill"],
      ["decode", "--model", "gpt"],
      ["decode", "--weights", "Q3"],
      ["decode", "--tp", "0"],
      ["decode", "--rounds", "many"],
      ["decode", "--fast"],
      ["decode", "--activations", "int4"],
      ["prefill", "--prompt", "128,"],
    ];
    for (const args of wrong) assert.throws(() => parseOptions(args, benches), UsageError, args.join(" "));
  });
});
