/**
 * The timeline of the page that `shardloom profile --html` writes: one lane a rank, spans on it and the phases of a span below
 * them. It runs in a browser, alone: the page embeds the compiled file, so nothing may be imported but types.
 */
import type { LoadPhase, LoadProfile, LoadSpan, RankLoadProfile } from "../src/loading/load-profile.js";

const AXIS_HEIGHT = 26;
const LANE_HEIGHT = 58;
const SPAN_HEIGHT = 22;
const PART_HEIGHT = 16;
const LABEL_WIDTH = 64;
/** The shortest stretch that can be shown, in nanoseconds. */
const MIN_VISIBLE_NS = 2000;
/** With less room for it, a name that does not fit says nothing. */
const MIN_SHORTENED_WIDTH = 64;
const ZOOM_STEP = 1.5;
const PAN_STEP = 0.2;

/** What is shown of the time axis. */
interface View {
  startNs: number;
  endNs: number;
}

/** A span of a rank, by their places. */
interface Selection {
  readonly lane: number;
  readonly span: number;
}

/** Colours that the style sheet sets. */
interface Theme {
  readonly text: string;
  readonly muted: string;
  readonly line: string;
  readonly accent: string;
  phase(phase: LoadPhase): string;
}

class Timeline {
  readonly #profile: LoadProfile;
  readonly #canvas: HTMLCanvasElement;
  readonly #context: CanvasRenderingContext2D;
  readonly #details: HTMLElement;
  readonly #tooltip: HTMLElement;
  readonly #view: View;
  #theme: Theme;
  #selected: Selection | null = null;
  #hovered: Selection | null = null;
  /** Where a drag began: x and the view at that time. */
  #drag: { readonly x: number; readonly view: View; moved: boolean } | null = null;
  #framePending = false;

  constructor(profile: LoadProfile, canvas: HTMLCanvasElement, context: CanvasRenderingContext2D) {
    this.#profile = profile;
    this.#canvas = canvas;
    this.#context = context;
    this.#details = element("details", HTMLElement);
    this.#tooltip = element("tooltip", HTMLElement);
    this.#view = { startNs: 0, endNs: Math.max(profile.totalNs, MIN_VISIBLE_NS) };
    this.#theme = readTheme();
    this.#listen();
    this.#resize();
  }

  #listen(): void {
    const canvas = this.#canvas;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#theme = readTheme();
      this.#redraw();
    });
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#drag = { x: event.offsetX, view: { ...this.#view }, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#release(event));
    canvas.addEventListener("pointerleave", () => this.#hover(null, 0, 0));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    button("zoom-in", () => this.#zoom(1 / ZOOM_STEP));
    button("zoom-out", () => this.#zoom(ZOOM_STEP));
    button("zoom-reset", () => this.#reset());
  }

  get #plotWidth(): number {
    return Math.max(1, this.#canvas.clientWidth - LABEL_WIDTH);
  }

  #toX(ns: number): number {
    const { startNs, endNs } = this.#view;
    return LABEL_WIDTH + ((ns - startNs) / (endNs - startNs)) * this.#plotWidth;
  }

  #toNs(x: number): number {
    const { startNs, endNs } = this.#view;
    return startNs + ((x - LABEL_WIDTH) / this.#plotWidth) * (endNs - startNs);
  }

  /** Shows `[startNs, endNs)`, kept within the profile. */
  #show(startNs: number, endNs: number): void {
    const whole = Math.max(this.#profile.totalNs, MIN_VISIBLE_NS);
    const length = Math.min(whole, Math.max(MIN_VISIBLE_NS, endNs - startNs));
    this.#view.startNs = Math.min(Math.max(0, startNs), whole - length);
    this.#view.endNs = this.#view.startNs + length;
    this.#canvas.dataset["startNs"] = String(Math.round(this.#view.startNs));
    this.#canvas.dataset["endNs"] = String(Math.round(this.#view.endNs));
    this.#redraw();
  }

  #zoom(factor: number, aboutNs?: number): void {
    const { startNs, endNs } = this.#view;
    const center = aboutNs ?? (startNs + endNs) / 2;
    // The point stays where it is, also when the length hits a limit.
    const length = Math.min(
      Math.max(this.#profile.totalNs, MIN_VISIBLE_NS),
      Math.max(MIN_VISIBLE_NS, (endNs - startNs) * factor),
    );
    const share = (center - startNs) / (endNs - startNs);
    this.#show(center - share * length, center + (1 - share) * length);
  }

  #pan(share: number): void {
    const { startNs, endNs } = this.#view;
    const by = (endNs - startNs) * share;
    this.#show(startNs + by, endNs + by);
  }

  #reset(): void {
    this.#show(0, this.#profile.totalNs);
  }

  #wheel(event: WheelEvent): void {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      this.#pan((event.deltaX === 0 ? event.deltaY : event.deltaX) / this.#plotWidth);
    } else this.#zoom(Math.exp(Math.max(-240, Math.min(240, event.deltaY)) / 300), this.#toNs(event.offsetX));
  }

  #move(event: PointerEvent): void {
    const { offsetX, offsetY } = event;
    const drag = this.#drag;
    if (drag === null) {
      this.#hover(this.#hit(offsetX, offsetY), offsetX, offsetY);
      return;
    }
    drag.moved ||= Math.abs(offsetX - drag.x) > 3;
    if (!drag.moved) return;
    const by = ((drag.x - offsetX) / this.#plotWidth) * (drag.view.endNs - drag.view.startNs);
    this.#hover(null, 0, 0);
    this.#show(drag.view.startNs + by, drag.view.endNs + by);
  }

  #release({ offsetX, offsetY }: PointerEvent): void {
    const { moved = false } = this.#drag ?? {};
    this.#drag = null;
    if (!moved) this.#select(this.#hit(offsetX, offsetY));
  }

  #key(event: KeyboardEvent): void {
    const action = this.#actionOf(event);
    if (action === undefined) return;
    event.preventDefault();
    action();
  }

  #actionOf({ key, shiftKey }: KeyboardEvent): (() => void) | undefined {
    switch (key) {
      case "+":
      case "=":
        return () => this.#zoom(1 / ZOOM_STEP, this.#selectedMiddle());
      case "-":
        return () => this.#zoom(ZOOM_STEP, this.#selectedMiddle());
      case "0":
      case "Home":
        return () => this.#reset();
      case "ArrowLeft":
        return () => (shiftKey ? this.#pan(-PAN_STEP) : this.#step(-1));
      case "ArrowRight":
        return () => (shiftKey ? this.#pan(PAN_STEP) : this.#step(1));
      case "ArrowUp":
        return () => this.#changeLane(-1);
      case "ArrowDown":
        return () => this.#changeLane(1);
      case "Enter":
        return () => this.#zoomToSelection();
      case "Escape":
        return () => this.#select(null);
      default:
        return undefined;
    }
  }

  #selectedMiddle(): number | undefined {
    const span = this.#spanAt(this.#selected);
    if (span === undefined) return undefined;
    const middle = span.startNs + span.durationNs / 2;
    return middle >= this.#view.startNs && middle <= this.#view.endNs ? middle : undefined;
  }

  #step(by: number): void {
    const { lane, span } = this.#selected ?? { lane: 0, span: by > 0 ? -1 : 1 };
    const last = (this.#profile.ranks[lane]?.spans.length ?? 0) - 1;
    if (last >= 0) this.#select({ lane, span: Math.min(last, Math.max(0, span + by)) }, true);
  }

  /** To the span of another rank that is there at about the same time. */
  #changeLane(by: number): void {
    const { ranks } = this.#profile;
    const from = this.#selected;
    const lane = Math.min(ranks.length - 1, Math.max(0, (from?.lane ?? (by > 0 ? -1 : 1)) + by));
    const spans = ranks[lane]?.spans ?? [];
    if (spans.length === 0) return;
    const atNs = this.#spanAt(from)?.startNs ?? 0;
    this.#select({ lane, span: Math.max(0, firstAfter(spans, atNs) - 1) }, true);
  }

  #zoomToSelection(): void {
    const span = this.#spanAt(this.#selected);
    if (span === undefined) return;
    const margin = Math.max(span.durationNs, MIN_VISIBLE_NS) * 0.25;
    this.#show(span.startNs - margin, span.startNs + span.durationNs + margin);
  }

  #spanAt(selection: Selection | null): LoadSpan | undefined {
    return selection === null ? undefined : this.#profile.ranks[selection.lane]?.spans[selection.span];
  }

  #select(selection: Selection | null, intoView = false): void {
    this.#selected = selection;
    const span = this.#spanAt(selection);
    const rank = selection === null ? undefined : this.#profile.ranks[selection.lane];
    this.#details.replaceChildren();
    if (span === undefined || rank === undefined) {
      this.#details.textContent = "Nothing is selected.";
    } else {
      this.#details.append(...describe(rank, span));
      const { startNs, endNs } = this.#view;
      const outside = span.startNs + span.durationNs < startNs || span.startNs > endNs;
      if (intoView && outside) {
        const half = (endNs - startNs) / 2;
        this.#show(span.startNs - half, span.startNs + half);
      }
    }
    this.#redraw();
  }

  #hover(selection: Selection | null, x: number, y: number): void {
    const span = this.#spanAt(selection);
    const rank = selection === null ? undefined : this.#profile.ranks[selection.lane];
    this.#tooltip.hidden = span === undefined;
    this.#canvas.style.cursor = span === undefined ? "grab" : "pointer";
    if (span !== undefined && rank !== undefined) {
      this.#tooltip.replaceChildren(...describe(rank, span));
      const room = this.#canvas.clientWidth - this.#tooltip.offsetWidth;
      this.#tooltip.style.left = `${Math.max(0, Math.min(x + 14, room))}px`;
      this.#tooltip.style.top = `${y + 18}px`;
    }
    if (this.#hovered?.lane === selection?.lane && this.#hovered?.span === selection?.span) return;
    this.#hovered = selection;
    this.#redraw();
  }

  /** The span at a point; short ones may be missed by two pixels. */
  #hit(x: number, y: number): Selection | null {
    const lane = Math.floor((y - AXIS_HEIGHT) / LANE_HEIGHT);
    const spans = this.#profile.ranks[lane]?.spans;
    if (spans === undefined || y < AXIS_HEIGHT || x < LABEL_WIDTH) return null;
    const after = firstAfter(spans, this.#toNs(x));
    for (const span of [after - 1, after]) {
      const { startNs = 0, durationNs = 0 } = spans[span] ?? {};
      if (spans[span] !== undefined && x >= this.#toX(startNs) - 2 && x <= this.#toX(startNs + durationNs) + 2) {
        return { lane, span };
      }
    }
    return null;
  }

  #resize(): void {
    const canvas = this.#canvas;
    const height = AXIS_HEIGHT + LANE_HEIGHT * this.#profile.ranks.length;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    this.#show(this.#view.startNs, this.#view.endNs);
  }

  #redraw(): void {
    if (this.#framePending) return;
    this.#framePending = true;
    requestAnimationFrame(() => {
      this.#framePending = false;
      this.#draw();
    });
  }

  #draw(): void {
    const context = this.#context;
    const width = this.#canvas.clientWidth;
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, width, this.#canvas.clientHeight);
    context.textBaseline = "middle";
    this.#drawAxis(width);
    for (const [lane, rank] of this.#profile.ranks.entries()) this.#drawLane(lane, rank, width);
    this.#outline(this.#hovered, 1);
    this.#outline(this.#selected, 2);
  }

  #drawAxis(width: number): void {
    const context = this.#context;
    const { startNs, endNs } = this.#view;
    const stepNs = tickStep((endNs - startNs) / Math.max(2, this.#plotWidth / 110));
    const height = AXIS_HEIGHT + LANE_HEIGHT * this.#profile.ranks.length;
    context.font = "11px system-ui, sans-serif";
    for (let ns = Math.ceil(startNs / stepNs) * stepNs; ns <= endNs; ns += stepNs) {
      const x = Math.round(this.#toX(ns)) + 0.5;
      context.fillStyle = this.#theme.line;
      context.fillRect(x, AXIS_HEIGHT - 6, 1, height - AXIS_HEIGHT + 6);
      context.fillStyle = this.#theme.muted;
      const label = timeText(ns, stepNs);
      if (x + context.measureText(label).width + 4 < width) context.fillText(label, x + 4, AXIS_HEIGHT / 2 - 2);
    }
  }

  #drawLane(lane: number, { rank, startNs, spans }: RankLoadProfile, width: number): void {
    const context = this.#context;
    const top = AXIS_HEIGHT + lane * LANE_HEIGHT;
    context.fillStyle = this.#theme.line;
    context.fillRect(0, top, width, 1);
    context.save();
    context.beginPath();
    context.rect(LABEL_WIDTH, top, width - LABEL_WIDTH, LANE_HEIGHT);
    context.clip();
    const first = Math.max(0, firstAfter(spans, this.#view.startNs) - 1);
    for (let i = first, drawnTo = Number.NEGATIVE_INFINITY; i < spans.length; i++) {
      const span = spans[i];
      if (span === undefined || span.startNs > this.#view.endNs) break;
      const end = this.#toX(span.startNs + span.durationNs);
      // Of spans that share a pixel, one is drawn.
      if (end < drawnTo + 0.5) continue;
      drawnTo = end;
      this.#drawSpan(span, top + 6);
    }
    this.#drawStart(startNs, top);
    context.restore();
    context.fillStyle = this.#theme.text;
    context.font = "600 12px system-ui, sans-serif";
    context.fillText(`rank ${rank}`, 4, top + LANE_HEIGHT / 2);
  }

  /** Nobody records what happens before the thread of a rank runs. */
  #drawStart(startNs: number, top: number): void {
    const [left, right] = [Math.max(LABEL_WIDTH, this.#toX(0)), this.#toX(startNs)];
    if (right - left < 90) return;
    this.#context.font = "italic 11px system-ui, sans-serif";
    this.#context.fillStyle = this.#theme.muted;
    this.#context.fillText("thread starts", left + 8, top + 6 + SPAN_HEIGHT / 2);
  }

  #drawSpan({ name, phase, startNs, durationNs, parts }: LoadSpan, top: number): void {
    const context = this.#context;
    const [left, right] = [this.#toX(startNs), this.#toX(startNs + durationNs)];
    const most = parts.reduce((a, b) => (b.selfNs > a.selfNs ? b : a), { phase, selfNs: -1 });
    const spanWidth = Math.max(1, right - left - (right - left > 4 ? 1 : 0));
    context.globalAlpha = phase === "wait" || phase === "other" ? 0.35 : 0.55;
    context.fillStyle = this.#theme.phase(most.phase);
    context.fillRect(left, top, spanWidth, SPAN_HEIGHT);
    context.globalAlpha = 1;
    let fromNs = startNs;
    for (const part of parts) {
      const x = this.#toX(fromNs);
      context.fillStyle = this.#theme.phase(part.phase);
      context.fillRect(x, top + SPAN_HEIGHT + 2, Math.max(0.5, this.#toX(fromNs + part.selfNs) - x), PART_HEIGHT);
      fromNs += part.selfNs;
    }
    this.#drawName(name, Math.max(left, LABEL_WIDTH), Math.min(right, this.#canvas.clientWidth), top);
  }

  #drawName(name: string, left: number, right: number, top: number): void {
    const room = right - left - 8;
    if (room < 24) return;
    const context = this.#context;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = this.#theme.text;
    const fits = context.measureText(name).width <= room;
    if (!fits && room < MIN_SHORTENED_WIDTH) return;
    const text = fits ? name : shortened(name, Math.floor(room / 6));
    context.fillText(text, left + 4, top + SPAN_HEIGHT / 2, room);
  }

  #outline(selection: Selection | null, lineWidth: number): void {
    const span = this.#spanAt(selection);
    if (span === undefined || selection === null) return;
    const context = this.#context;
    const left = Math.max(LABEL_WIDTH, this.#toX(span.startNs));
    const right = Math.min(this.#canvas.clientWidth, this.#toX(span.startNs + span.durationNs));
    if (right < left) return;
    context.strokeStyle = this.#theme.accent;
    context.lineWidth = lineWidth;
    const top = AXIS_HEIGHT + selection.lane * LANE_HEIGHT + 4;
    context.strokeRect(left - 1, top, Math.max(3, right - left + 1), SPAN_HEIGHT + PART_HEIGHT + 6);
  }
}

/** The end of a tensor's name tells more than its beginning. */
function shortened(name: string, most: number): string {
  return `…${name.slice(-Math.max(1, most - 1))}`;
}

/** Index of the first span that begins after `ns`; they are in order. */
function firstAfter(spans: readonly LoadSpan[], ns: number): number {
  let [low, high] = [0, spans.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((spans[middle]?.startNs ?? 0) <= ns) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A span in words: text alone, whatever its name holds. */
function describe({ rank }: RankLoadProfile, { name, startNs, durationNs, parts }: LoadSpan): HTMLElement[] {
  const title = document.createElement("strong");
  title.textContent = name;
  const when = document.createElement("div");
  when.textContent = `rank ${rank}, ${timeText(durationNs)} from ${timeText(startNs)} on`;
  const lines = parts.map(({ phase, selfNs, bytes, calls }) => {
    const line = document.createElement("div");
    const swatch = document.createElement("span");
    swatch.className = `swatch ${phase}`;
    const rate = bytes > 0 && selfNs > 0 ? `, ${(bytes / selfNs).toPrecision(3)} GB/s` : "";
    const amount = bytes > 0 ? `, ${bytesText(bytes)}${rate} in ${calls} call${calls === 1 ? "" : "s"}` : "";
    line.append(swatch, `${phase} ${timeText(selfNs)}${amount}`);
    return line;
  });
  return [title, when, ...lines];
}

/** 1, 2 or 5 times a power of ten, at least `ns`. */
function tickStep(ns: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, ns)));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= ns) ?? 10);
}

function timeText(ns: number, stepNs = ns): string {
  const scale = Math.max(ns, stepNs);
  const [unit, size] = scale >= 1e9 ? ["s", 1e9] : scale >= 1e6 ? ["ms", 1e6] : scale >= 1e3 ? ["µs", 1e3] : ["ns", 1];
  const digits = stepNs < ns ? Math.max(0, Math.ceil(Math.log10(Number(size) / stepNs))) : 3;
  return stepNs < ns
    ? `${(ns / Number(size)).toFixed(digits)} ${unit}`
    : `${Number((ns / Number(size)).toPrecision(3))} ${unit}`;
}

function bytesText(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${Number((bytes / 1000 ** power).toPrecision(3))} ${units[power]}`;
}

function readTheme(): Theme {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  return {
    text: colour("text"),
    muted: colour("muted"),
    line: colour("line"),
    accent: colour("accent"),
    phase: (phase) => colour(phase),
  };
}

function element<Kind extends HTMLElement>(id: string, Kind: new () => Kind): Kind {
  const found = document.getElementById(id);
  if (found instanceof Kind) return found;
  throw new Error(`the page has no ${id}`);
}

function button(id: string, action: () => void): void {
  element(id, HTMLButtonElement).addEventListener("click", action);
}

function start(): void {
  const profile: LoadProfile = JSON.parse(element("profile", HTMLScriptElement).textContent ?? "");
  const canvas = element("timeline", HTMLCanvasElement);
  const context = canvas.getContext("2d");
  if (context !== null) new Timeline(profile, canvas, context);
}

start();
