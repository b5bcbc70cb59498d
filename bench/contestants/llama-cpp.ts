/** llama.cpp itself, through the bench programs of a build that the user names: one process a sample. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";
import type { PeerStatus } from "../frame/result.js";
import type { BenchModel } from "../models/model-store.js";
import type { Contestant, DecodeWork } from "./contestant.js";

export const LLAMA_CPP = "llama.cpp";

const run = promisify(execFile);
/** A bench that hangs ends here. */
const TIMEOUT_MS = 600_000;

/** What llama-bench says of one test, as far as it is used here. */
interface LlamaBenchTest {
  readonly build_commit: string;
  readonly avg_ts: number;
}

/** Whether `program`, a path of llama-bench, can be used; null asks for nothing. */
export async function llamaCppStatus(program: string | null, model: BenchModel): Promise<PeerStatus> {
  const absentBecause = (absent: string): PeerStatus => ({ name: LLAMA_CPP, version: null, absent });
  if (program === null) return absentBecause("no --llama-bench PATH and no LLAMA_BENCH was given");
  if (!existsSync(program)) return absentBecause(`${program} does not exist`);
  try {
    const [test] = await llamaBench(program, model, ["-p", "1", "-n", "0"]);
    return { name: LLAMA_CPP, version: test?.build_commit ?? null, absent: null };
  } catch (error) {
    return absentBecause(error instanceof Error ? error.message : String(error));
  }
}

export function startLlamaCpp(program: string, model: BenchModel, threads: number): Contestant {
  return new LlamaCpp(program, model, threads);
}

class LlamaCpp implements Contestant {
  readonly name = LLAMA_CPP;
  readonly peer = true;
  readonly #program: string;
  readonly #model: BenchModel;
  readonly #threads: string;

  constructor(program: string, model: BenchModel, threads: number) {
    this.#program = program;
    this.#model = model;
    this.#threads = String(threads);
  }

  prefill(promptTokens: number): Promise<number> {
    return this.#test(["-p", String(promptTokens), "-n", "0"]);
  }

  decode({ sequences, contextTokens, tokens }: DecodeWork): Promise<number> {
    if (sequences > 1) return this.#batched(sequences, contextTokens, tokens);
    return this.#test(["-p", "0", "-n", String(tokens), "-d", String(contextTokens)]);
  }

  /** The programs tell times only. */
  async nextToken(): Promise<null> {
    return null;
  }

  async close(): Promise<void> {}

  async #test(args: readonly string[]): Promise<number> {
    const [test] = await llamaBench(this.#program, this.#model, [...args, "-t", this.#threads]);
    if (test === undefined) throw new Error(`${this.#program}: expected one test but received none`);
    return test.avg_ts;
  }

  /** Through llama-batched-bench, which lies beside llama-bench. */
  async #batched(sequences: number, contextTokens: number, tokens: number): Promise<number> {
    const program = join(dirname(this.#program), basename(this.#program).replace("llama-bench", "llama-batched-bench"));
    const size = String(sequences * (contextTokens + tokens) + 256);
    const work = ["-npp", String(contextTokens), "-ntg", String(tokens), "-npl", String(sequences)];
    const args = ["-m", this.#model.path, "-c", size, ...work, "-t", this.#threads, "--output-format", "jsonl"];
    const { stdout } = await run(program, args, { timeout: TIMEOUT_MS });
    const line = stdout.split("\n").find((text) => text.startsWith("{"));
    if (line === undefined) throw new Error(`${program}: expected a line of JSON but received ${stdout.slice(0, 200)}`);
    const result: { speed_tg: number } = JSON.parse(line);
    return result.speed_tg;
  }
}

async function llamaBench(program: string, model: BenchModel, args: readonly string[]): Promise<LlamaBenchTest[]> {
  const { stdout } = await run(program, ["-m", model.path, "-r", "1", "-o", "json", ...args], { timeout: TIMEOUT_MS });
  return JSON.parse(stdout);
}
