/**
 * A load profile as one page: tables that are there without a script, and a timeline. It needs nothing from anywhere, and its
 * Content-Security-Policy forbids it to ask: only the one script and the one style sheet that are in it may be used. Names
 * of models and tensors are text of others: they are escaped wherever they stand.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { viewerScript } from "../core/package-files.js";
import { LOAD_PHASES, type LoadPhase, type LoadProfile, type RankLoadProfile, slowestTensors } from "../index.js";
import { PAGE_STYLE } from "./profile-page-style.js";
import { formatNs, skewText } from "./profile-table.js";
import { formatBytes } from "./quantities.js";

export function profilePage(profile: LoadProfile, top: number): string {
  const script = readFileSync(viewerScript, "utf8");
  const policy = `default-src 'none'; script-src ${sourceOf(script)}; style-src ${sourceOf(PAGE_STYLE)}`;
  const { model } = profile.subject;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="shardloom">
<title>${escapeHtml(model)}: load profile</title>
<style>${PAGE_STYLE}</style>
</head>
<body>
<main>
${headOf(profile)}
${timelineOf(profile)}
${phasesOf(profile)}
${systemOf(profile)}
${tensorsOf(profile, top)}
</main>
<script type="application/json" id="profile">${escapeJson(profile)}</script>
<script type="module">${script}</script>
</body>
</html>
`;
}

/** JSON that no HTML parser takes for anything else: what could begin a tag or a comment is written as an escape. */
export function escapeJson(value: unknown): string {
  return JSON.stringify(value).replace(/[<>&\u2028\u2029]/g, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ENTITIES[character] ?? character);
}

/** How a policy names an inline script or style sheet. */
function sourceOf(content: string): string {
  return `'sha256-${createHash("sha256").update(content).digest("base64")}'`;
}

function headOf({
  subject,
  machine,
  startedAt,
  worldSize,
  totalNs,
  bytesRead,
  readAmplification,
  ...profile
}: LoadProfile) {
  const { model, loadFormat, quantization, dtype, checkpointBytes } = subject;
  const weights = quantization === null ? dtype : `${quantization}, the rest ${dtype}`;
  const { skew, peakMemoryBytes } = profile;
  const cards: readonly (readonly [value: string, what: string])[] = [
    [formatNs(totalNs), "until every rank was ready"],
    [formatBytes(bytesRead), `read from ${formatBytes(checkpointBytes)} of weight files`],
    [readAmplification === null ? "-" : `${readAmplification.toFixed(2)} x`, "read amplification"],
    [worldSize === 1 ? "-" : skew.ratio.toFixed(2), "skew: slowest rank by the median"],
    [formatBytes(peakMemoryBytes), "peak memory of the process"],
  ];
  const boxes = cards.map(([value, what]) => `<div class="card"><b>${escapeHtml(value)}</b><span>${what}</span></div>`);
  const place = `${worldSize} rank${worldSize === 1 ? "" : "s"}, ${loadFormat}, weights ${weights}`;
  const where = `${startedAt}, ${machine.cpu}, ${machine.cores} cores, ${machine.platform} ${machine.arch}, Node.js ${machine.node}`;
  const verdict = worldSize === 1 ? "" : `<p class="verdict">Skew ${escapeHtml(skewText(skew))}.</p>`;
  return `<header>
<h1>${escapeHtml(model)}</h1>
<p>${escapeHtml(place)}</p>
<p>${escapeHtml(where)}</p>
<div class="cards">${boxes.join("")}</div>
${verdict}
</header>`;
}

function timelineOf({ worldSize }: LoadProfile): string {
  const legend = LOAD_PHASES.map((phase) => `<span><span class="swatch ${phase}"></span>${phase}</span>`).join("");
  const label = `Timeline of ${worldSize} rank${worldSize === 1 ? "" : "s"}. Arrow keys choose a span; its details are read below.`;
  return `<section>
<h2>Timeline</h2>
<div class="toolbar">
<div class="buttons">
<button type="button" id="zoom-in" aria-label="Zoom in">+</button>
<button type="button" id="zoom-out" aria-label="Zoom out">&minus;</button>
<button type="button" id="zoom-reset">All</button>
</div>
<div class="legend">${legend}</div>
</div>
<div class="frame">
<canvas id="timeline" tabindex="0" role="application" aria-label="${label}" aria-describedby="keys"></canvas>
<div id="tooltip" hidden></div>
</div>
<div id="details" aria-live="polite">Nothing is selected.</div>
<p id="keys">Wheel: zoom. Drag: move. <kbd>&larr;</kbd> <kbd>&rarr;</kbd> spans, <kbd>&uarr;</kbd> <kbd>&darr;</kbd> ranks, <kbd>+</kbd> <kbd>-</kbd> zoom,
<kbd>Shift</kbd> with <kbd>&larr;</kbd> <kbd>&rarr;</kbd> move, <kbd>Enter</kbd> zooms to the selected span, <kbd>0</kbd> shows all. Above: spans, in the
colour of the phase that took most of each; below: their phases, one block each, with exact lengths.</p>
<noscript><p>The timeline needs JavaScript; the tables do not.</p></noscript>
</section>`;
}

function phasesOf(profile: LoadProfile): string {
  const longestNs = Math.max(...profile.ranks.map(({ totalNs }) => totalNs));
  const rows = profile.ranks.map((rank) => {
    const cells = LOAD_PHASES.map((phase) => `<td>${phaseCell(rank, phase)}</td>`).join("");
    const slowest = profile.worldSize > 1 && rank.rank === profile.skew.slowestRank;
    return `<tr${slowest ? ' class="slowest"' : ""}><td>rank ${rank.rank}</td>${cells}<td>${formatNs(rank.busyNs)}</td><td>${barOf(rank, longestNs)}</td></tr>`;
  });
  const titles = ["rank", ...LOAD_PHASES, "without wait", ""];
  return sectionOf("Phases", titles, rows);
}

function phaseCell({ phases }: RankLoadProfile, phase: LoadPhase): string {
  const { selfNs, bytes, gigabytesPerSecond } = phases[phase];
  const rate = gigabytesPerSecond === null ? "" : ` at ${formatBytes(gigabytesPerSecond * 1e9)}/s`;
  return `${formatNs(selfNs)}${bytes === 0 ? "" : `<small>${formatBytes(bytes)}${rate}</small>`}`;
}

const BAR_WIDTH = 130;

/** An SVG needs no style attributes, which the policy forbids. */
function barOf({ phases }: RankLoadProfile, longestNs: number): string {
  let x = 0;
  const parts = LOAD_PHASES.map((phase) => {
    const width = longestNs === 0 ? 0 : (BAR_WIDTH * phases[phase].selfNs) / longestNs;
    const part = `<rect class="${phase}" x="${x.toFixed(2)}" width="${width.toFixed(2)}" height="14"/>`;
    x += width;
    return part;
  });
  return `<svg class="bar" viewBox="0 0 ${BAR_WIDTH} 14" width="${BAR_WIDTH}" height="14" aria-hidden="true">${parts.join("")}</svg>`;
}

function systemOf({ ranks }: LoadProfile): string {
  if (ranks.every(({ system }) => system === undefined)) return "";
  const cell = (value: number | undefined, format: (value: number) => string): string => {
    return `<td>${value === undefined ? "-" : format(value)}</td>`;
  };
  const rows = ranks.map(({ rank, system = {}, parameterBytes, kvCacheBytes }) => {
    const { readBytes, diskBytes, minorFaults, majorFaults, cpuNs, runQueueNs } = system;
    const cached = readBytes === undefined || diskBytes === undefined ? undefined : Math.max(0, readBytes - diskBytes);
    const cells = [
      cell(diskBytes, formatBytes),
      cell(cached, formatBytes),
      cell(minorFaults, String),
      cell(majorFaults, String),
      cell(cpuNs, formatNs),
      cell(runQueueNs, formatNs),
      cell(parameterBytes, formatBytes),
      cell(kvCacheBytes, formatBytes),
    ];
    return `<tr><td>rank ${rank}</td>${cells.join("")}</tr>`;
  });
  const titles = [
    "rank",
    "from storage",
    "from the page cache",
    "page faults",
    "major ones",
    "on a core",
    "queued for one",
  ];
  return sectionOf("What the system counted for the thread", [...titles, "parameters", "KV cache, reserved"], rows);
}

function tensorsOf(profile: LoadProfile, top: number): string {
  const slowest = slowestTensors(profile, top);
  if (slowest.length === 0) return "";
  const rows = slowest.map(({ name, rank, durationNs, medianNs, phase, bytesRead }) => {
    const cells = [`${rank}`, formatNs(durationNs), formatNs(medianNs), phase, formatBytes(bytesRead)];
    return `<tr><td class="name">${escapeHtml(name)}</td>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`;
  });
  return sectionOf("Slowest tensors", ["tensor", "on rank", "time", "median of ranks", "mostly", "read"], rows);
}

function sectionOf(title: string, columns: readonly string[], rows: readonly string[]): string {
  const head = columns.map((column) => `<th scope="col">${column}</th>`).join("");
  return `<section>
<h2>${title}</h2>
<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${rows.join("\n")}</tbody></table></div>
</section>`;
}
