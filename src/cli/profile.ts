/** `shardloom profile`: loads a model, and says where the time went on each rank. */
import { resolve } from "node:path";
import type { Command } from "commander";
import { checkWholeFile, writeWholeFile } from "../checkpoint/whole-file.js";
import { OptionError, ShardloomError } from "../core/errors.js";
import type { LoadProfile } from "../index.js";
import type { CommandContext } from "./context.js";
import { launchModel } from "./launch-model.js";
import { addModelOptions, type ModelFlags } from "./model-options.js";
import { filePath, realNumber, wholeNumber } from "./option-values.js";
import { addProfileDiffCommand } from "./profile-diff.js";
import { profilePage } from "./profile-page.js";
import { profileLines, skewText } from "./profile-table.js";
import { profileTrace } from "./profile-trace.js";

interface ProfileFlags extends Omit<ModelFlags, "model"> {
  readonly model?: string;
  readonly json?: string;
  readonly trace?: string;
  readonly html?: string;
  readonly top: number;
  readonly maxSkew?: number;
}

const DEFAULT_TOP = 10;

const EXPLANATION = `
The model is loaded as generate loads it, and closed again. Phases: index (files are opened, headers read), read (bytes come
from files), shard (they are cut, converted, copied), quantize (weights are quantized in flight), repack (layouts of kernels are
prepared), wait (for other ranks), other. docs/load-profile.md explains what they mean and how to read the result.

Files appear when they are complete; - stands for stdout, and then no table is printed. --trace makes a file for
https://ui.perfetto.dev, --html one page that needs nothing else.

--max-skew makes a gate: the exit code is 6 when the slowest rank took more than so many times the median of all ranks.

Examples:
  shardloom profile --model ./llama --tp 4 --html load.html
  shardloom profile --model ./llama --tp 4 --json load.json --max-skew 1.3
  shardloom profile diff before.json after.json`;

export function addProfileCommand(program: Command, context: CommandContext): void {
  const command = program.command("profile").description("load a model and say where the time goes on each rank");
  addProfileDiffCommand(command, context);
  // Flags of `profile diff` are its own, also where they bear the names of flags of `profile`.
  command.enablePositionalOptions();
  addModelOptions(command);
  // Of `profile` alone: commander would ask for it in front of `diff` as well.
  const modelOption = command.options.find(({ long }) => long === "--model");
  modelOption?.makeOptionMandatory(false);
  command
    .optionsGroup("Output:")
    .option("--json <file>", "write the profile as JSON (docs/load-profile.schema.json)", filePath("--json"))
    .option("--trace <file>", "write a timeline for Perfetto", filePath("--trace"))
    .option("--html <file>", "write a page with a timeline to zoom into", filePath("--html"))
    .option("--top <n>", "tensors to list, the slowest first", wholeNumber("--top", 0), DEFAULT_TOP)
    .option(
      "--max-skew <ratio>",
      "fail when the slowest rank takes longer than so many times the median",
      realNumber("--max-skew", "of at least 1", (value) => value >= 1),
    )
    .addHelpText("after", EXPLANATION)
    .action(async (flags: ProfileFlags) => {
      const { model } = flags;
      if (model !== undefined) return runProfile({ ...flags, model }, context);
      return command.error(`error: required option '${modelOption?.flags}' not specified`, {
        exitCode: 1,
        code: "commander.missingMandatoryOptionValue",
      });
    });
}

/** What is written where, and how. */
interface ProfileOutput {
  readonly flag: string;
  readonly file: string;
  readonly text: (profile: LoadProfile) => string;
}

async function runProfile(flags: ProfileFlags & ModelFlags, { stdout, interruption }: CommandContext): Promise<void> {
  const outputs = outputsOf(flags);
  checkOutputs(outputs);
  const profile = await loadOnce(flags, interruption.signal);
  if (interruption.signal.aborted) return;
  for (const { file, text } of outputs) {
    if (file === "-") await stdout.write(text(profile));
    else writeWholeFile(file, text(profile));
  }
  if (!outputs.some(({ file }) => file === "-")) {
    const coloured = stdout.isTerminal && process.env["NO_COLOR"] === undefined;
    const width = stdout.isTerminal ? process.stdout.columns : PLAIN_COLUMNS;
    await stdout.writeStyled(`${profileLines(profile, { top: flags.top, width, coloured }).join("\n")}\n`);
  }
  if (flags.maxSkew !== undefined) checkSkew(profile, flags.maxSkew);
}

/** Columns of a table that no terminal shows. */
const PLAIN_COLUMNS = 100;

async function loadOnce(flags: ModelFlags, signal: AbortSignal): Promise<LoadProfile> {
  const { engine } = await launchModel(flags, signal, { loadProfile: true });
  await engine.close();
  const { loadProfile } = engine;
  if (loadProfile === null) throw new ShardloomError("RANK_FAILED", "expected every rank to record how it loaded");
  return loadProfile;
}

function outputsOf({ json, trace, html, top }: ProfileFlags): readonly ProfileOutput[] {
  const asJson = (value: unknown): string => `${JSON.stringify(value)}\n`;
  return [
    ...(json === undefined ? [] : [{ flag: "--json", file: json, text: asJson }]),
    ...(trace === undefined
      ? []
      : [{ flag: "--trace", file: trace, text: (profile: LoadProfile) => asJson(profileTrace(profile)) }]),
    ...(html === undefined
      ? []
      : [{ flag: "--html", file: html, text: (profile: LoadProfile) => profilePage(profile, top) }]),
  ];
}

/** Before the model is loaded. Throws OptionError `INVALID_OPTION` for a place named twice, ShardloomError `WRITE_FAILED`. */
function checkOutputs(outputs: readonly ProfileOutput[]): void {
  const places = new Map<string, string>();
  for (const { flag, file } of outputs) {
    const place = file === "-" ? file : resolve(file);
    const other = places.get(place);
    if (other !== undefined) {
      throw new OptionError(
        "INVALID_OPTION",
        `expected ${other} and ${flag} to name different files but received ${JSON.stringify(file)} for both`,
        { option: flag, expected: "another file", received: file },
      );
    }
    places.set(place, flag);
    if (file !== "-") checkWholeFile(file);
  }
}

/** Throws ShardloomError `LOAD_SKEW`. */
function checkSkew({ skew }: LoadProfile, most: number): void {
  if (skew.ratio <= most) return;
  throw new ShardloomError("LOAD_SKEW", `expected a skew of at most ${most} but received ${skewText(skew)}`, {
    expected: most,
    received: skew.ratio,
    rank: skew.slowestRank,
    ...(skew.phase === null ? {} : { phase: skew.phase }),
  });
}
