/** Run as a process: serves an answer, begins another that nobody ends, and must end though nothing is closed. */
import { answerTo, engineFixture } from "./engine-fixture.js";

const { engine, executor } = engineFixture();
const { finishReason } = await answerTo(engine, { promptTokenIds: [1], sampling: { maxTokens: 10 } });
const steps = executor.history.length;
const abandoned = engine.generate({ promptTokenIds: [2], sampling: { maxTokens: 20 } });
await abandoned.next();
process.on("exit", () => {
  // The abandoned answer was computed to its end, 20 steps, and then there was nothing left to do.
  if (executor.history.length !== steps + 20) process.exitCode = 1;
  process.stdout.write(JSON.stringify({ steps, finishReason }));
});
