/** A load profile of known times, and the published schema. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import type { LoadPhase, LoadProfile } from "../../src/index.js";
import { assembleLoadProfile, eachPhase, type LoadSpan, type RankLoadRecord } from "../../src/loading/load-profile.js";

const MS = 1_000_000;

/** Names that would play tricks on a terminal or a page. */
export const HOSTILE_NAME = "model.</script><img src=x onerror=alert(1)>\u001b[31m\u2028.weight";

function span(name: string, startMs: number, parts: readonly (readonly [LoadPhase, number, number])[]): LoadSpan {
  const made = parts.map(([phase, ms, bytes]) => ({ phase, selfNs: ms * MS, bytes, calls: 1 }));
  const durationNs = made.reduce((sum, { selfNs }) => sum + selfNs, 0);
  return { name, phase: parts[0]?.[0] ?? "other", startNs: startMs * MS, durationNs, parts: made };
}

/** `readMs` is how long the rank reads its largest tensor. */
function record(rank: number, readMs: number): RankLoadRecord {
  const spans = [
    span("plugins", 100, [["other", 50, 0]]),
    span("headers", 150, [["index", 10, 1000]]),
    span("model.embed_tokens.weight", 160, [
      ["shard", 20, 4_000_000],
      ["read", readMs, 4_000_000],
    ]),
    span(HOSTILE_NAME, 180 + readMs, [
      ["shard", 5, 500],
      ["quantize", 30, 500],
      ["read", 5, 2000],
    ]),
    span("model.layers.0.mlp.down_proj", 220 + readMs, [["repack", 40, 4_000_500]]),
  ];
  const total = (phase: LoadPhase, of: (part: LoadSpan["parts"][number]) => number): number =>
    spans.flatMap(({ parts }) => parts).reduce((sum, part) => sum + (part.phase === phase ? of(part) : 0), 0);
  return {
    rank,
    startNs: 100 * MS,
    endNs: (260 + readMs) * MS,
    phases: eachPhase((phase) => ({
      selfNs: total(phase, ({ selfNs }) => selfNs),
      bytes: total(phase, ({ bytes }) => bytes),
      calls: total(phase, ({ calls }) => calls),
    })),
    readsObserved: true,
    parameterBytes: 4_000_500,
    kvCacheBytes: 0,
    ...(rank === 0 ? {} : { system: { readBytes: 4_003_000, diskBytes: 1_000_000, minorFaults: 900, majorFaults: 3 } }),
    spans,
  };
}

/** Three ranks; the last reads its embedding for 400 ms, the others for 100 and 120 ms. */
export function knownProfile(reads: readonly number[] = [100, 120, 400]): LoadProfile {
  return assembleLoadProfile(
    {
      startedAt: "2026-01-02T03:04:05.678Z",
      subject: { model: "m", loadFormat: "safetensors", quantization: null, dtype: "bf16", checkpointBytes: 8_000_000 },
      machine: { platform: "linux", arch: "x64", cpu: "A CPU", cores: 4, node: "v20.20.0" },
      peakMemoryBytes: 123_000_000,
    },
    reads.map((readMs, rank) => record(rank, readMs)),
  );
}

interface Validate {
  (value: unknown): boolean;
  readonly errors?: unknown;
}

interface AjvModule {
  readonly Ajv2020: new (options: object) => { compile(schema: unknown): Validate };
}

/** Checks a value against docs/load-profile.schema.json: what is wrong with it, null if nothing. */
export function schemaErrors(value: unknown): unknown {
  const path = fileURLToPath(new URL("../../../docs/load-profile.schema.json", import.meta.url));
  const { Ajv2020 }: AjvModule = createRequire(import.meta.url)("ajv/dist/2020.js");
  const validate = new Ajv2020({ allErrors: true, strict: true, allowUnionTypes: true }).compile(
    JSON.parse(readFileSync(path, "utf8")),
  );
  return validate(value) ? null : validate.errors;
}
