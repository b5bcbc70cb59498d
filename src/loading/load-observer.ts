/** Who hears how loading goes, while it goes. Nobody does unless somebody asks for a profile. */
import type { ReadObserver } from "../checkpoint/random-access-file.js";
import type { LoadPhase } from "./load-profile.js";

/**
 * Phases nest: what is entered last is left first, and its time is not counted for those around it. How reads are done,
 * and how many at a time, is not the observer's business: whoever does something that belongs to a phase, on the rank's
 * own thread, says so.
 */
export interface LoadObserver extends ReadObserver {
  /** A phase begins. Outside of all others, it begins a span that bears `name`. */
  enter(phase: LoadPhase, name?: string): void;
  /** It ends; `bytes` of it are what it dealt with. */
  leave(bytes?: number): void;
}
