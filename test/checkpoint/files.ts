/** Files for the tests of checkpoints: a temporary folder for each test, and safetensors files built by hand. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { CheckpointError } from "../../src/core/errors.js";

/** A folder that mocha's hooks make before each test and remove after it; call it inside `describe`. */
export function temporaryFolder(): {
  readonly path: string;
  write(name: string, content: string | Uint8Array): string;
} {
  let path = "";
  beforeEach(() => {
    path = mkdtempSync(join(tmpdir(), "shardloom-test-"));
  });
  afterEach(() => rmSync(path, { recursive: true, force: true }));
  return {
    get path() {
      return path;
    },
    write(name, content) {
      const file = join(path, name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, content);
      return file;
    },
  };
}

/** A file of the given header text (or JSON value) and data; `claimed` is the length it states. */
export function safetensorsBytes(
  header: unknown,
  data: Uint8Array = new Uint8Array(0),
  claimed?: bigint | number,
): Uint8Array {
  const text = header instanceof Uint8Array ? header : Buffer.from(asText(header));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(claimed ?? text.length), true);
  return Buffer.concat([new Uint8Array(length.buffer), text, data]);
}

function asText(header: unknown): string {
  return typeof header === "string" ? header : JSON.stringify(header);
}

/** A file that holds u8 vectors of the given bytes. */
export function vectorsBytes(tensors: Readonly<Record<string, readonly number[]>>): Uint8Array {
  const header: Record<string, unknown> = {};
  let offset = 0;
  for (const [name, values] of Object.entries(tensors)) {
    header[name] = { dtype: "U8", shape: [values.length], data_offsets: [offset, offset + values.length] };
    offset += values.length;
  }
  return safetensorsBytes(header, Uint8Array.from(Object.values(tensors).flat()));
}

/** For assert.throws and assert.rejects: a CheckpointError of this code whose message matches all of `patterns`. */
export function checkpointError(code: string, ...patterns: readonly RegExp[]): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof CheckpointError, `expected a CheckpointError but received ${String(error)}`);
    assert.equal(error.code, code, error.message);
    for (const pattern of patterns) assert.match(error.message, pattern);
    return true;
  };
}

/** Open file descriptors of this process; null where the system does not list them. */
export function openDescriptors(): number | null {
  try {
    return readdirSync("/proc/self/fd").length;
  } catch {
    return null;
  }
}
