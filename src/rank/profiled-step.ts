import type { StepRecorder } from "../core/step-recorder.js";
import { STEP_SEQUENCES, STEP_TOKENS, type Steps, stepOf } from "./step.js";

/** Runs steps as `runStep` does, and has `recorder` know when each began, when it ended, and of which phase it was. */
export function profiledStep(runStep: (n: number) => void, steps: Steps, recorder: StepRecorder): (n: number) => void {
  return (n) => {
    const { header } = stepOf(steps, n).views;
    recorder.beginStep(header[STEP_TOKENS] === header[STEP_SEQUENCES] ? "decode" : "prefill");
    runStep(n);
    recorder.endStep();
  };
}
