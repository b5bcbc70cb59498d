import type { StepRecorder } from "../core/step-recorder.js";
import { STEP_SEQUENCES, STEP_TOKENS, type Step } from "./step.js";

/** Runs steps as `runStep` does, and has `recorder` know when each began, when it ended, and of which phase it was. */
export function profiledStep(runStep: () => void, step: Step, recorder: StepRecorder): () => void {
  const { header } = step.views;
  return () => {
    recorder.beginStep(header[STEP_TOKENS] === header[STEP_SEQUENCES] ? "decode" : "prefill");
    runStep();
    recorder.endStep();
  };
}
