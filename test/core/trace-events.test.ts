import assert from "node:assert/strict";
import { TRACE_FORMAT, TRACE_VERSION, traceDocument } from "../../src/core/trace-events.js";

describe("trace events", () => {
  const tracks = [
    { id: 7, name: "rank 0" },
    { id: 3, name: "rank 1" },
  ];

  it("name the tracks and sort them as they were given", () => {
    const { traceEvents } = traceDocument(tracks, []);
    assert.deepEqual(traceEvents, [
      { ph: "M", name: "thread_name", pid: 0, tid: 7, args: { name: "rank 0" } },
      { ph: "M", name: "thread_sort_index", pid: 0, tid: 7, args: { sort_index: 0 } },
      { ph: "M", name: "thread_name", pid: 0, tid: 3, args: { name: "rank 1" } },
      { ph: "M", name: "thread_sort_index", pid: 0, tid: 3, args: { sort_index: 1 } },
    ]);
  });

  it("are complete events in microseconds, by start, the enclosing one first", () => {
    const slice = (name: string, startUs: number, durationUs: number) => ({
      track: 7,
      name,
      category: "load",
      startUs,
      durationUs,
    });
    const document = traceDocument(tracks, [slice("late", 5, 1), slice("inner", 0, 2), slice("outer", 0, 6)]);
    const events = document.traceEvents.filter(({ ph }) => ph === "X");
    assert.deepEqual(events, [
      { ph: "X", name: "outer", cat: "load", pid: 0, tid: 7, ts: 0, dur: 6 },
      { ph: "X", name: "inner", cat: "load", pid: 0, tid: 7, ts: 0, dur: 2 },
      { ph: "X", name: "late", cat: "load", pid: 0, tid: 7, ts: 5, dur: 1 },
    ]);
  });

  it("say what they are, and survive JSON", () => {
    const args = { bytes: 12, tensor: "x", cached: true };
    const slice = { track: 3, name: "read", category: "io", startUs: 0.5, durationUs: 0, args };
    const document = traceDocument(tracks, [slice], { worldSize: 2 });
    assert.deepEqual(document.otherData, { format: TRACE_FORMAT, version: TRACE_VERSION, worldSize: 2 });
    assert.deepEqual(JSON.parse(JSON.stringify(document)), document);
    assert.deepEqual(document.traceEvents.at(-1), {
      ph: "X",
      name: "read",
      cat: "io",
      pid: 0,
      tid: 3,
      ts: 0.5,
      dur: 0,
      args,
    });
  });
});
