import { LOAD_PHASES } from "../index.js";

/** How the page of a load profile looks, in light and in dark. Colours of phases are variables that bear their names. */
export const PAGE_STYLE = `
:root {
  color-scheme: light dark;
  --surface: #ffffff; --card: #f6f7f9; --text: #1c2230; --muted: #5b6475; --line: #dfe3ea; --accent: #1c2230;
  --index: #8b6fc9; --read: #2f7fd1; --shard: #14988a; --quantize: #e0752d; --repack: #b8911a; --wait: #d64550; --other: #98a0ae;
}
@media (prefers-color-scheme: dark) {
  :root {
    --surface: #12151c; --card: #1a1f2a; --text: #e7eaf1; --muted: #9aa4b6; --line: #2b3240; --accent: #ffffff;
    --index: #a38be0; --read: #4b9bed; --shard: #2bb5a5; --quantize: #f08a45; --repack: #d2ab34; --wait: #ef6a73; --other: #6f7888;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--surface); color: var(--text); font: 14px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 36px 0 10px; }
p { margin: 4px 0; color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-top: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 20px; font-weight: 650; }
.card span { color: var(--muted); font-size: 12.5px; }
.verdict { margin-top: 14px; color: var(--text); }
.toolbar { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 16px; margin-bottom: 10px; }
.buttons { display: flex; gap: 4px; }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 7px; padding: 3px 11px; cursor: pointer; }
button:hover { border-color: var(--muted); }
button:focus-visible, canvas:focus-visible { outline: 2px solid var(--read); outline-offset: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; color: var(--muted); font-size: 13px; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
${LOAD_PHASES.map((phase) => `.swatch.${phase} { background: var(--${phase}); }\n.bar .${phase} { fill: var(--${phase}); }`).join("\n")}
.frame { position: relative; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
canvas { display: block; width: 100%; touch-action: pan-y; cursor: grab; }
#tooltip { position: absolute; z-index: 1; pointer-events: none; max-width: 460px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 8px 11px; font-size: 12.5px; box-shadow: 0 6px 20px rgb(0 0 0 / 18%); overflow-wrap: anywhere; }
#details { min-height: 66px; margin-top: 10px; padding: 10px 14px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  font-size: 13px; overflow-wrap: anywhere; }
kbd { font: 12px ui-monospace, monospace; border: 1px solid var(--line); border-bottom-width: 2px; border-radius: 5px; padding: 0 5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 9px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; }
th:first-child, td:first-child, .text { text-align: left; }
td small { color: var(--muted); display: block; font-size: 11.5px; }
td.name { white-space: normal; overflow-wrap: anywhere; text-align: left; }
tr.slowest td:first-child { font-weight: 650; }
.bar { display: block; border-radius: 4px; }
`;
