/** A program that starts ranks and ends in the way its argument says. It never calls process.exit unless told to. */
import { setTimeout as delay } from "node:timers/promises";
import { faultReached, runFakeStep, startFakeRanks } from "./fake-ranks.js";

const print = (text: string): void => {
  process.stdout.write(`${text}\n`);
};

const codeOf = (error: unknown): string => (error instanceof Error && "code" in error ? String(error.code) : "none");
const describe = (error: unknown): string => `${codeOf(error)} ${error instanceof Error ? error.message : ""}`;

const endings: Readonly<Record<string, () => Promise<void>>> = {
  async close() {
    const coordinator = await startFakeRanks();
    print(`answer ${await runFakeStep(coordinator, 1)}`);
    await coordinator.close();
  },
  async forget() {
    const coordinator = await startFakeRanks();
    print(`answer ${await runFakeStep(coordinator, 1)}`);
  },
  async crash() {
    const coordinator = await startFakeRanks({ faults: [{ rank: 1, at: 1, what: "exit" }] });
    print(await runFakeStep(coordinator, 1).then(() => "no error", codeOf));
  },
  async "crash-on-load"() {
    print(await startFakeRanks({ faults: [{ rank: 1, at: "load", what: "exit" }] }).then(() => "no error", codeOf));
  },
  async "exhaust-in-step"() {
    const coordinator = await startFakeRanks({ faults: [{ rank: 1, at: 1, what: "exhaust" }] });
    print(await runFakeStep(coordinator, 1).then(() => "no error", describe));
  },
  async "hang-on-load"() {
    const options = { faults: [{ rank: 1, at: "load", what: "hang" }], timeouts: { startTimeoutMs: 1000 } } as const;
    print(await startFakeRanks(options).then(() => "no error", codeOf));
  },
  async "exit-in-step"() {
    const coordinator = await startFakeRanks({ worldSize: 3, faults: [{ rank: 1, at: 1, what: "hang" }] });
    void runFakeStep(coordinator, 1);
    await faultReached(coordinator);
    process.exit(5);
  },
  async "step-after-pause"() {
    const coordinator = await startFakeRanks();
    await delay(300);
    // Nothing but the step in flight keeps the process alive now.
    void runFakeStep(coordinator, 1).then((answer) => print(`answer ${answer}`));
  },
};

const ending = endings[process.argv[2] ?? ""];
if (ending === undefined) throw new RangeError(`no such ending: ${process.argv[2]}`);
await ending();
