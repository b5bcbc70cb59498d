/** A collective that records how long every request takes, and how much of that a rank waited for others. */
import { COLLECTIVE, type StepRecorder } from "../core/step-recorder.js";
import type { Collective, CollectiveRequest } from "./collective.js";

/** The same collective, whose requests `recorder` gets to know. All ranks of a group must be profiled, or none. */
export function profiledCollective(collective: Collective, recorder: StepRecorder): Collective {
  return {
    rank: collective.rank,
    worldSize: collective.worldSize,
    execute(request: CollectiveRequest) {
      const start = recorder.arrive();
      collective.execute(request);
      recorder.leave(start);
      recorder.note(COLLECTIVE);
    },
    ...(collective.replayed === undefined ? {} : { replayed: collective.replayed }),
    abort: () => collective.abort(),
  };
}
