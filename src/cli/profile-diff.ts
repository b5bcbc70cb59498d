/** `shardloom profile diff`: what changed from one load profile to another. */
import type { Command } from "commander";
import { LOAD_PHASES } from "../index.js";
import type { CommandContext } from "./context.js";
import { wholeNumber } from "./option-values.js";
import { type Change, compareProfiles, type ProfileComparison, type RankChange } from "./profile-comparison.js";
import { readProfile } from "./profile-file.js";
import { formatBytes, formatMs } from "./quantities.js";
import { oneLine } from "./terminal-text.js";
import { type TextColumn, textTable } from "./text-table.js";

interface DiffFlags {
  readonly json?: boolean;
  readonly top: number;
}

const DEFAULT_TOP = 10;

const EXPLANATION = `
Both files are what profile --json writes. Ratios are after by before. Tensors are compared on whichever rank took longest over
them, so that profiles of different numbers of ranks can be compared.

Example:
  shardloom profile diff before.json after.json`;

/** Adds the command below `profile`. */
export function addProfileDiffCommand(profile: Command, { stdout }: CommandContext): void {
  profile
    .command("diff")
    .description("compare two load profiles")
    .argument("<before>", "profile in JSON")
    .argument("<after>", "another one")
    .option("--json", "print one JSON object")
    .option("--top <n>", "tensors to list, those that changed most first", wholeNumber("--top", 0), DEFAULT_TOP)
    .addHelpText("after", EXPLANATION)
    .action(async (before: string, after: string, flags: DiffFlags) => {
      const comparison = compareProfiles(readProfile(before), readProfile(after), flags.top);
      if (flags.json === true) await stdout.writeJson(comparison);
      else await stdout.write(`${comparisonLines(comparison).join("\n")}\n`);
    });
}

const CHANGE_COLUMNS: readonly TextColumn[] = [
  { title: "before", align: "right" },
  { title: "after", align: "right" },
  { title: "ratio", align: "right" },
];

/** Lines; names are made safe for a terminal. */
export function comparisonLines(comparison: ProfileComparison): readonly string[] {
  const { before, after, totalNs, bytesRead, ranks, tensors } = comparison;
  const head = [before, after].map(({ model, startedAt, worldSize }, i) => {
    const ranksText = `${worldSize} rank${worldSize === 1 ? "" : "s"}`;
    return `${i === 0 ? "before" : "after"}: ${oneLine(model)}, ${ranksText}, ${oneLine(startedAt)}`;
  });
  const whole = [
    ["until every rank was ready", ...changeCells(totalNs, formatTime)],
    ["bytes read", ...changeCells(bytesRead, formatBytes)],
  ];
  const sections = [
    head,
    textTable([{ title: "all ranks" }, ...CHANGE_COLUMNS], whole),
    textTable(
      [{ title: "rank", align: "right" }, { title: "phase" }, ...CHANGE_COLUMNS, { title: "" }, ...CHANGE_COLUMNS],
      ranks.flatMap(rankRows),
    ),
    tensors.length === 0
      ? []
      : textTable(
          [{ title: "tensors that changed most" }, ...CHANGE_COLUMNS],
          tensors.map(({ name, durationNs }) => [oneLine(name), ...changeCells(durationNs, formatTime)]),
        ),
  ];
  return sections.filter((lines) => lines.length > 0).flatMap((lines, i) => (i === 0 ? lines : ["", ...lines]));
}

/** Phases that neither profile has anything of are left out. */
function rankRows({ rank, busyNs, phases }: RankChange): readonly (readonly string[])[] {
  const rows = LOAD_PHASES.flatMap((phase) => {
    const { selfNs, bytes } = phases[phase];
    if (isNothing(selfNs) && isNothing(bytes)) return [];
    const amounts = isNothing(bytes) ? [] : ["bytes", ...changeCells(bytes, formatBytes)];
    return [[`${rank}`, phase, ...changeCells(selfNs, formatTime), ...amounts]];
  });
  return [...rows, [`${rank}`, "without wait", ...changeCells(busyNs, formatTime)]];
}

function isNothing({ before, after }: Change): boolean {
  return (before ?? 0) === 0 && (after ?? 0) === 0;
}

function changeCells({ before, after, ratio }: Change, format: (value: number) => string): readonly string[] {
  const text = (value: number | null): string => (value === null ? "none" : format(value));
  return [text(before), text(after), ratio === null ? "-" : ratio.toFixed(2)];
}

function formatTime(ns: number): string {
  return formatMs(ns / 1e6);
}
