import { CheckpointError, type CheckpointTensor } from "shardloom/plugin";

/** The error of a tensor that is not what it should be, with everything a person needs to find it. */
export function invalid(
  code: string,
  { name, file }: Pick<CheckpointTensor, "name" | "file">,
  expected: string | number,
  received: string | number,
  cause?: unknown,
): CheckpointError {
  return new CheckpointError(
    code,
    `${name}: expected ${expected} but received ${received} (${file})`,
    { tensor: name, expected, received, file },
    cause === undefined ? undefined : { cause },
  );
}

/** `[64, 128] bf16`, as messages show it. */
export function describeTensor({ dtype, shape }: Pick<CheckpointTensor, "dtype" | "shape">): string {
  return `[${shape.join(", ")}] ${dtype}`;
}
