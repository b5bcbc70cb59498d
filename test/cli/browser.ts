/** Chromium without a window, driven through a pipe: as much of the DevTools protocol as a test of one page needs. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { rmSync } from "node:fs";
import { Readable, Writable } from "node:stream";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/** The browser of this machine; null where there is none. CHROMIUM names another. */
export function findChromium(): string | null {
  const named = process.env["CHROMIUM"];
  for (const name of named === undefined ? NAMES : [named]) {
    try {
      execFileSync(name, ["--version"], { stdio: "ignore", timeout: 20_000 });
      return name;
    } catch {
      // The next one.
    }
  }
  return null;
}

interface Reply {
  readonly id?: number;
  readonly method?: string;
  readonly result?: Readonly<Record<string, unknown>>;
  readonly error?: { readonly message: string };
  readonly params?: Readonly<Record<string, unknown>>;
}

type Values = Readonly<Record<string, unknown>>;

export class Browser {
  readonly #child: ChildProcess;
  readonly #profileDirectory: string;
  readonly #commands: Writable;
  readonly #waiting = new Map<number, { resolve(value: Values): void; reject(error: Error): void }>();
  readonly #events = new Map<string, (params: Values) => void>();
  #nextId = 1;
  #sessionId: string | undefined;
  #rest = "";
  /** What the page complained of: errors of its script, requests that its policy refused. */
  readonly complaints: string[] = [];
  /** Addresses that the page asked for, but its own. */
  readonly requests: string[] = [];

  private constructor(child: ChildProcess, profileDirectory: string) {
    const [, , , commands, answers] = child.stdio;
    if (!(commands instanceof Writable) || !(answers instanceof Readable)) throw new Error("the browser has no pipes");
    this.#child = child;
    this.#profileDirectory = profileDirectory;
    this.#commands = commands;
    answers.setEncoding("utf8").on("data", (text: string) => this.#receive(text));
    child.on("exit", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("the browser ended"));
    });
  }

  /** `profileDirectory` is made, and removed by `close`. */
  static async start(executable: string, profileDirectory: string): Promise<Browser> {
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=1200,900"];
    const child = spawn(executable, [...flags, `--user-data-dir=${profileDirectory}`], {
      stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    });
    const browser = new Browser(child, profileDirectory);
    const { targetId } = await browser.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await browser.send("Target.attachToTarget", { targetId, flatten: true });
    browser.#sessionId = String(sessionId);
    browser.#events.set("Runtime.exceptionThrown", (params) => browser.complaints.push(JSON.stringify(params)));
    browser.#events.set("Log.entryAdded", (params) => {
      const text = JSON.stringify(params);
      if (text.includes('"level":"error"')) browser.complaints.push(text);
    });
    browser.#events.set("Network.requestWillBeSent", (params) => browser.requests.push(JSON.stringify(params)));
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await browser.send(`${domain}.enable`);
    return browser;
  }

  /** Resolves when the page is loaded. */
  async open(url: string): Promise<void> {
    const loaded = new Promise<void>((resolve) => this.#events.set("Page.loadEventFired", () => resolve()));
    await this.send("Page.navigate", { url });
    await loaded;
  }

  /** The value of an expression in the page. */
  async evaluate(expression: string): Promise<unknown> {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails));
    return typeof result === "object" && result !== null && "value" in result ? result.value : undefined;
  }

  async press(key: string, shift = false): Promise<void> {
    const modifiers = shift ? 8 : 0;
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", key, modifiers });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", key, modifiers });
  }

  async mouse(type: "mouseMoved" | "mousePressed" | "mouseReleased" | "mouseWheel", x: number, y: number, deltaY = 0) {
    await this.send("Input.dispatchMouseEvent", {
      type,
      x,
      y,
      deltaX: 0,
      deltaY,
      button: type === "mouseWheel" ? "none" : "left",
      buttons: type === "mouseReleased" || type === "mouseWheel" ? 0 : 1,
      clickCount: type === "mousePressed" || type === "mouseReleased" ? 1 : 0,
    });
  }

  send(method: string, params: Values = {}): Promise<Values> {
    const id = this.#nextId++;
    const session = this.#sessionId === undefined ? {} : { sessionId: this.#sessionId };
    this.#commands.write(`${JSON.stringify({ id, method, params, ...session })}\0`);
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  async close(): Promise<void> {
    const ended = new Promise((resolve) => this.#child.on("exit", resolve));
    this.#child.kill();
    await ended;
    rmSync(this.#profileDirectory, { recursive: true, force: true, maxRetries: 10 });
  }

  #receive(text: string): void {
    const messages = (this.#rest + text).split("\0");
    this.#rest = messages.pop() ?? "";
    for (const message of messages) {
      const reply: Reply = JSON.parse(message);
      if (reply.id === undefined) {
        this.#events.get(reply.method ?? "")?.(reply.params ?? {});
        continue;
      }
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if (reply.error === undefined) waiting?.resolve(reply.result ?? {});
      else waiting?.reject(new Error(reply.error.message));
    }
  }
}
