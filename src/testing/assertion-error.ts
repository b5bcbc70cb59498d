import { AssertionError } from "node:assert";
import type { ShardId } from "../quantization/contract.js";

/** What a failed assertion is about. Only those fields that apply are set. */
export interface AssertionDetails {
  /** Path of the layer: `model.layers.0.self_attn.qkv_proj`. */
  readonly layer?: string | null;
  /** Name of the parameter or of the checkpoint tensor. */
  readonly tensor?: string;
  readonly rank?: number;
  readonly shardId?: ShardId | null;
  /** First index that differs. */
  readonly index?: readonly number[];
  readonly expected: unknown;
  readonly received: unknown;
}

/** An AssertionError of node:assert, which every test runner knows how to show, with what it is about as fields. */
export class SimulationAssertionError extends AssertionError {
  readonly details: AssertionDetails;

  constructor(message: string, details: AssertionDetails) {
    super({ message, actual: details.received, expected: details.expected, operator: "simulation" });
    this.details = details;
  }
}

/** `rank 2, shard k, index [5, 0]`: where something is, for messages. */
export function describePlace(place: Pick<AssertionDetails, "rank" | "shardId" | "index">): string {
  const { rank, shardId, index } = place;
  const words: string[] = [];
  if (rank !== undefined) words.push(`rank ${rank}`);
  if (shardId !== undefined && shardId !== null) words.push(`shard ${shardId}`);
  if (index !== undefined) words.push(`index [${index.join(", ")}]`);
  return words.join(", ");
}
