/** How phases of loading look: the same letter on paper and colour on screen wherever they are shown. */
import type { LoadPhase } from "../index.js";

export interface PhaseStyle {
  /** Stands for the phase where there is no colour. */
  readonly letter: string;
  /** Code of a colour among the 256 of terminals. */
  readonly terminalColour: number;
}

export const PHASE_STYLES: Readonly<Record<LoadPhase, PhaseStyle>> = {
  index: { letter: "i", terminalColour: 140 },
  read: { letter: "r", terminalColour: 33 },
  shard: { letter: "s", terminalColour: 36 },
  quantize: { letter: "q", terminalColour: 208 },
  repack: { letter: "p", terminalColour: 178 },
  wait: { letter: "w", terminalColour: 160 },
  other: { letter: ".", terminalColour: 245 },
};

/** A stretch of a bar, so many columns long. */
export function barOf(phase: LoadPhase, columns: number, coloured: boolean): string {
  const { letter } = PHASE_STYLES[phase];
  return coloured ? inColour(phase, "█".repeat(columns)) : letter.repeat(columns);
}

/** What a phase looks like in a bar, and its name. */
export function legendOf(phase: LoadPhase, coloured: boolean): string {
  return coloured ? `${inColour(phase, "██")} ${phase}` : `${PHASE_STYLES[phase].letter} ${phase}`;
}

function inColour(phase: LoadPhase, text: string): string {
  return `\u001b[38;5;${PHASE_STYLES[phase].terminalColour}m${text}\u001b[0m`;
}
