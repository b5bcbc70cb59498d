/** The page of a load profile: whole in itself, safe whatever tensors are called, and a timeline that can be worked with. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { profilePage } from "../../src/cli/profile-page.js";
import { Browser, findChromium } from "./browser.js";
import { cli } from "./cli-process.js";
import { HOSTILE_NAME, knownProfile } from "./load-profile-fixture.js";
import { TINY_LLAMA } from "./models.js";

const page = profilePage(knownProfile(), 5);

describe("the page of a load profile", () => {
  it("asks for nothing: no address, no import, and a policy that forbids both", () => {
    for (const forbidden of [/https?:/i, /\shref=/i, /@import/i, /url\(/i, /\bimport\s*[({"']/, /sourceMappingURL/]) {
      assert.doesNotMatch(page, forbidden);
    }
    assert.match(
      page,
      /Content-Security-Policy" content="default-src 'none'; script-src 'sha256-[\w+/=]+'; style-src 'sha256-[\w+/=]+'"/,
    );
  });

  it("holds the profile, which comes out as it went in", () => {
    const [, json = ""] = /<script type="application\/json" id="profile">(.*?)<\/script>/s.exec(page) ?? [];
    assert.deepEqual(JSON.parse(json), knownProfile());
  });

  it("lets no name become a tag: there are the two scripts, and no image", () => {
    assert.equal(page.match(/<script/g)?.length, 2);
    assert.equal(page.match(/<\/script>/g)?.length, 2);
    assert.ok(!page.includes("<img"));
    assert.ok(page.includes("model.&lt;/script&gt;&lt;img"));
  });

  it("escapes what a model is called, in the title too", () => {
    const known = knownProfile();
    const named = profilePage({ ...known, subject: { ...known.subject, model: `"><script>alert(1)</script>` } }, 5);
    assert.equal(named.match(/<script/g)?.length, 2);
    assert.match(named, /<title>&quot;&gt;&lt;script&gt;/);
  });

  it("has every rank in its tables, which need no script", () => {
    for (const rank of [0, 1, 2]) assert.ok(page.includes(`<td>rank ${rank}</td>`));
    assert.match(page, /<tr class="slowest"><td>rank 2<\/td>/);
    assert.match(page, /<td class="name">model\.embed_tokens\.weight<\/td><td>2<\/td><td>420 ms<\/td>/);
  });

  it("is what profile --html writes", async () => {
    const { code, stdout } = await cli(["profile", "--model", TINY_LLAMA, "--tp", "2", "--html", "-"]);
    assert.equal(code, 0);
    assert.match(stdout, /^<!doctype html>.*<\/html>\n$/s);
  });
});

describe("the timeline of the page, in a browser", () => {
  let folder: string;
  let browser: Browser | undefined;

  before(async function () {
    const executable = findChromium();
    if (executable === null) {
      console.warn("      skipped: no chromium was found on this machine (CHROMIUM names one)");
      return this.skip();
    }
    folder = mkdtempSync(join(tmpdir(), "shardloom-page-"));
    const file = join(folder, "page.html");
    writeFileSync(file, page);
    browser = await Browser.start(executable, join(folder, "browser"));
    await browser.open(pathToFileURL(file).href);
  });
  after(async () => {
    await browser?.close();
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
  });

  /** The browser; tests without one are skipped before they ask. */
  function chromium(): Browser {
    assert.ok(browser !== undefined);
    return browser;
  }
  /** What is shown of the time axis, in milliseconds. */
  async function view(): Promise<readonly [number, number]> {
    const text = await chromium().evaluate("timeline.dataset.startNs + ' ' + timeline.dataset.endNs");
    const [start = 0, end = 0] = String(text).split(" ").map(Number);
    return [start / 1e6, end / 1e6];
  }
  const details = (): Promise<unknown> => chromium().evaluate("document.getElementById('details').innerText");
  /** Where a time is on the screen, in a lane. */
  async function pointAt(ms: number, lane: number): Promise<readonly [number, number]> {
    const [start, end] = await view();
    const text = await chromium().evaluate(
      "(({ left, top, width }) => [left, top, width].join(' '))(timeline.getBoundingClientRect())",
    );
    const [left = 0, top = 0, width = 0] = String(text).split(" ").map(Number);
    return [left + 64 + ((ms - start) / (end - start)) * (width - 64), top + 26 + 58 * lane + 16];
  }

  it("draws every lane, and nobody complains", async () => {
    assert.deepEqual(await view(), [0, 660]);
    const colours = await chromium().evaluate(`(async () => {
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      const context = timeline.getContext("2d");
      return [0, 1, 2].map((lane) => {
        const { data } = context.getImageData(64, 26 + 58 * lane + 32, timeline.width - 64, 1);
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) seen.add(data.slice(i, i + 3).join());
        return seen.size;
      });
    })()`);
    // At least index, read, shard, quantize, repack, other; the last rank does not wait.
    assert.ok(Array.isArray(colours) && colours.every((count) => Number(count) >= 6), String(colours));
    assert.deepEqual(chromium().complaints, []);
    assert.equal(chromium().requests.filter((request) => !request.includes('"url":"file:')).length, 0);
  });

  it("wheel zooms about the pointer, drag moves, buttons do both for those who click", async () => {
    const [x, y] = await pointAt(330, 1);
    await chromium().mouse("mouseWheel", x, y, -200);
    const [start, end] = await view();
    assert.ok(start > 0 && end < 660 && end - start < 400, `${start} ${end}`);
    const middle = start + (end - start) / 2;
    assert.ok(Math.abs(middle - 330) < 5, `${middle}`);
    await chromium().mouse("mousePressed", x, y);
    await chromium().mouse("mouseMoved", x + 100, y);
    await chromium().mouse("mouseReleased", x + 100, y);
    const [moved, movedEnd] = await view();
    assert.ok(moved < start && Math.abs(movedEnd - moved - (end - start)) < 0.01);
    await chromium().evaluate("document.getElementById('zoom-out').click()");
    await chromium().evaluate("document.getElementById('zoom-reset').click()");
    assert.deepEqual(await view(), [0, 660]);
  });

  it("hovering shows the span, its phases, bytes and speed, with its name as text", async () => {
    const [x, y] = await pointAt(200, 2);
    await chromium().mouse("mouseMoved", x, y);
    const tooltip = await chromium().evaluate("document.getElementById('tooltip').innerText");
    assert.match(
      String(tooltip),
      /model\.embed_tokens\.weight\s+rank 2, 420 ms from 160 ms on\s+shard 20 ms, 4 MB, 0\.200 GB\/s in 1 call\s+read 400 ms, 4 MB/,
    );
    const [hostileX, hostileY] = await pointAt(300, 0);
    await chromium().mouse("mouseMoved", hostileX, hostileY);
    assert.equal(await chromium().evaluate("document.querySelector('#tooltip strong').textContent"), HOSTILE_NAME);
    assert.equal(await chromium().evaluate("document.images.length"), 0);
  });

  it("is worked with by keys alone: spans, ranks, zoom, and details that are read aloud", async () => {
    await chromium().evaluate("timeline.focus()");
    await chromium().press("0");
    await chromium().press("Escape");
    assert.match(String(await details()), /Nothing is selected/);
    for (const key of ["ArrowRight", "ArrowRight", "ArrowRight"]) await chromium().press(key);
    assert.match(String(await details()), /model\.embed_tokens\.weight\s+rank 0/);
    await chromium().press("ArrowDown");
    assert.match(String(await details()), /model\.embed_tokens\.weight\s+rank 1/);
    await chromium().press("Enter");
    const [start, end] = await view();
    assert.ok(start > 100 && start < 160 && end > 300 && end < 360, `${start} ${end}`);
    await chromium().press("ArrowRight", true);
    assert.ok((await view())[0] > start);
    await chromium().press("-");
    await chromium().press("Home");
    assert.deepEqual(await view(), [0, 660]);
    assert.equal(await chromium().evaluate("document.getElementById('details').getAttribute('aria-live')"), "polite");
    assert.deepEqual(chromium().complaints, []);
  });
});
