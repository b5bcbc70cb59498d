/** The command line of `npm run bench`. */
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { ACTIVATIONS, type Activations, isActivations } from "../../src/kernels/activation-levels.js";
import { WEIGHT_MIXES } from "../models/made-up-model.js";
import { NF4 } from "../models/model-store.js";
import { type ModelShape, SHAPES } from "../models/shapes.js";
import { LINEAR_FORMATS } from "../operations/linear-formats.js";

/** Of made-up models, and the formats of `kernels`. */
const WEIGHTS = [...new Set([...WEIGHT_MIXES, { name: NF4 }, ...LINEAR_FORMATS].map(({ name }) => name))];

export interface BenchOptions {
  readonly bench: string;
  /** Models to run; empty for the bench's own choice. */
  readonly models: readonly ModelShape[];
  /** Names of weights: of WEIGHT_MIXES, NF4, and for `kernels` of LINEAR_FORMATS; empty for the bench's own choice. */
  readonly weights: readonly string[];
  /** World sizes of shardloom. */
  readonly tp: readonly number[];
  /** Threads of each rank of shardloom. */
  readonly threadsPerRank: readonly (number | "auto")[];
  /** How shardloom's activations meet quantized weights. */
  readonly activations: readonly Activations[];
  /** Threads of peers. */
  readonly threads: number;
  readonly rounds: number;
  /** Tokens of prompts that are read. */
  readonly prompts: readonly number[];
  /** Tokens of the prompt before an answer. */
  readonly context: number;
  /** Tokens of an answer. */
  readonly tokens: number;
  /** Whether node-llama-cpp and llama.cpp take part. */
  readonly peers: boolean;
  /** Path of llama-bench; null for none. */
  readonly llamaBench: string | null;
  /** Where the result goes as JSON; null for nowhere. */
  readonly json: string | null;
  readonly note: string;
}

export const USAGE = `usage: npm run bench -- BENCH [options]

  --model NAME         ${SHAPES.map(({ name }) => name).join(", ")}; may be given more than once
  --weights NAME       of made-up models, or of kernels: ${WEIGHTS.join(", ")}; may be given more than once
  --tp N,N             world sizes of shardloom (default: 1 and the number of CPUs)
  --threads-per-rank N,N  threads of each rank, or auto (default auto: the CPUs divided by the ranks)
  --activations LEVEL,LEVEL  of shardloom beside quantized weights: ${ACTIVATIONS.join(", ")} (default auto)
  --threads N          threads of peers (default: the number of CPUs)
  --rounds N           samples of each contestant (default 5)
  --tokens N           tokens of each answer (default 64)
  --prompt N,N         tokens of the prompts that \`prefill\` reads (default 128,512)
  --context N          tokens of the prompt before each answer of \`decode\` (default 16)
  --no-peers           shardloom alone
  --llama-bench PATH   llama-bench of a build of llama.cpp, which then takes part (default: LLAMA_BENCH)
  --json FILE          writes the result there as well
  --note TEXT          what is to be known about this run, kept with its result`;

/** What a user has asked for is wrong; the message says what was expected. */
export class UsageError extends Error {}

/** Throws UsageError. */
export function parseOptions(args: readonly string[], benches: readonly string[]): BenchOptions {
  const cpus = availableParallelism();
  const { values, positionals } = parse(args);
  const [bench, ...others] = positionals;
  if (bench === undefined || !benches.includes(bench) || others.length > 0) {
    const received = positionals.length === 0 ? "none" : positionals.join(" ");
    throw new UsageError(`expected one bench (${benches.join(", ")}) but received ${received}`);
  }
  return {
    bench,
    models: values.model.map((name) => named("--model", name, SHAPES)),
    weights: values.weights.map(weights),
    tp: values.tp === undefined ? [...new Set([1, cpus])] : counts("--tp", values.tp),
    threadsPerRank: values["threads-per-rank"]
      .split(",")
      .map((text) => (text === "auto" ? text : count("--threads-per-rank", text))),
    activations: values.activations.split(",").map(level),
    threads: count("--threads", values.threads ?? String(cpus)),
    rounds: count("--rounds", values.rounds),
    tokens: count("--tokens", values.tokens),
    prompts: counts("--prompt", values.prompt),
    context: count("--context", values.context),
    peers: !values["no-peers"],
    llamaBench: values["llama-bench"] ?? process.env["LLAMA_BENCH"] ?? null,
    json: values.json ?? null,
    note: values.note,
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        model: { type: "string", multiple: true, default: [] },
        weights: { type: "string", multiple: true, default: [] },
        tp: { type: "string" },
        "threads-per-rank": { type: "string", default: "auto" },
        activations: { type: "string", default: "auto" },
        threads: { type: "string" },
        rounds: { type: "string", default: "5" },
        tokens: { type: "string", default: "64" },
        prompt: { type: "string", default: "128,512" },
        context: { type: "string", default: "16" },
        "no-peers": { type: "boolean", default: false },
        "llama-bench": { type: "string" },
        json: { type: "string" },
        note: { type: "string", default: "" },
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function named<T extends { readonly name: string }>(option: string, name: string, known: readonly T[]): T {
  const found = known.find((candidate) => candidate.name === name);
  if (found !== undefined) return found;
  const expected = known.map((candidate) => candidate.name).join(", ");
  throw new UsageError(`expected ${option} to be one of ${expected} but received ${JSON.stringify(name)}`);
}

function weights(text: string): string {
  if (WEIGHTS.includes(text)) return text;
  const expected = WEIGHTS.join(", ");
  throw new UsageError(`expected --weights to be one of ${expected} but received ${JSON.stringify(text)}`);
}

function level(text: string): Activations {
  if (isActivations(text)) return text;
  const expected = ACTIVATIONS.join(", ");
  throw new UsageError(`expected --activations to be some of ${expected} but received ${JSON.stringify(text)}`);
}

function counts(option: string, text: string): number[] {
  return text.split(",").map((part) => count(option, part));
}

function count(option: string, text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new UsageError(`expected ${option} to be a whole number above 0 but received ${JSON.stringify(text)}`);
}
