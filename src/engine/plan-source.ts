/** Where the shapes of a plan come from: the headers of weight files, or config.json where there are none. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { selectWeightFiles, type WeightMap } from "../checkpoint/index-file.js";
import { OptionError, ShardloomError } from "../core/errors.js";
import { readJsonObject } from "../core/json.js";
import { dummyLoader } from "../loading/dummy-loader.js";
import type { ModelDescription } from "../loading/model-loader.js";
import type { Registries } from "../loading/plugins.js";
import type { QuantizationChoice } from "../quantization/registry.js";

/** Why the model would not run like this. */
export interface PlanProblem {
  /** Code of the error that launch() would throw; docs/errors.md has them. */
  readonly code: string;
  readonly message: string;
}

/** What was found out besides numbers. */
export class Findings {
  readonly problems: PlanProblem[] = [];
  readonly notes: string[] = [];

  attempt<Result>(step: () => Result): Result | undefined {
    try {
      return step();
    } catch (error) {
      this.keep(error);
      return undefined;
    }
  }

  async awaiting<Result>(step: () => Promise<Result>): Promise<Result | undefined> {
    try {
      return await step();
    } catch (error) {
      this.keep(error);
      return undefined;
    }
  }

  /** What would keep the model from running, where more is to be found after it. */
  keep(error: unknown): void {
    // An option that means nothing is the caller's mistake; one that this model cannot have is a finding.
    if (!(error instanceof ShardloomError) || (error instanceof OptionError && error.code === "INVALID_OPTION")) {
      throw error;
    }
    this.problems.push({ code: error.code, message: error.message });
  }
}

export interface PlanSource {
  readonly loadFormat: string;
  readonly description: ModelDescription;
  readonly source: "headers" | "config";
  /** Names that the index promises, where config.json stands for files that are not there. */
  readonly index: WeightMap | null;
}

/** What is looked for where. */
export interface SourceRequest {
  readonly path: string;
  readonly loadFormat?: string | undefined;
  readonly quantization: QuantizationChoice | null;
}

/** Finds and describes what is at a local path. Throws what the loader throws. */
export async function findSource(request: SourceRequest, registries: Registries, found: Findings): Promise<PlanSource> {
  const { path, loadFormat } = request;
  const absent = weightsAbsent(path, found);
  const loader = absent === null ? registries.modelLoaders.select(path, loadFormat) : dummyLoader;
  if (absent !== null) checkQuantization(request, registries, found);
  const description = await loader.describe(path);
  const isMadeUp = loader === dummyLoader;
  const source = isMadeUp ? "config" : "headers";
  return { loadFormat: loader.format, description, source, index: absent?.index ?? null };
}

/** Weights that are made up are not quantized. Those that are not here may be, in a way that somebody has to know. */
function checkQuantization({ path, quantization }: SourceRequest, registries: Registries, found: Findings): void {
  const config = readJsonObject(statSync(path).isDirectory() ? join(path, "config.json") : path);
  const selected = found.attempt(() => registries.quantization.select(config, quantization));
  if (selected?.origin !== "checkpoint" || quantization !== null) return;
  found.notes.push(
    `config.json says that the weights are quantized (${selected.method}): without their headers, sizes are those of unquantized weights; naming the method as quantization plans them quantized`,
  );
}

/** Whether config.json has to stand for the weight files, with the index that is there all the same; null if it has not. */
function weightsAbsent(path: string, { problems, notes }: Findings): { readonly index: WeightMap | null } | null {
  const isDirectory = statSync(path).isDirectory();
  if (!isDirectory) {
    if (!path.endsWith(".json")) return null;
    notes.push("planned from a config alone: it is taken for granted that the weights are those of the model");
    return { index: null };
  }
  const names = readdirSync(path);
  if (!names.includes("config.json")) return null;
  let selected: ReturnType<typeof selectWeightFiles>;
  try {
    selected = selectWeightFiles(names, path);
  } catch (error) {
    const unreadable = !(error instanceof ShardloomError) || error.code !== "NO_SAFETENSORS";
    if (unreadable || names.some((name) => /\.(gguf|bin|pth?)$/.test(name))) return null;
    notes.push("planned from config.json: there are no weight files");
    return { index: null };
  }
  const missing = selected.files.filter((name) => !existsSync(join(path, name)));
  if (missing.length === 0) return null;
  const [first] = missing;
  if (missing.length < selected.files.length) {
    problems.push({
      code: "MISSING_WEIGHT_FILE",
      message: `${missing.length} of ${selected.files.length} weight files that the index names are missing: ${first}, ...`,
    });
  }
  notes.push(
    `planned from config.json and the index: ${missing.length} of ${selected.files.length} weight files are not here`,
  );
  return { index: selected.index };
}
