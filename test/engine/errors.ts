/** A check of a typed error, for assert.throws and assert.rejects. */
import assert from "node:assert/strict";
import { ShardloomError } from "../../src/core/errors.js";

type ErrorClass = new (...parameters: never[]) => ShardloomError;

/** True for an error of exactly this class and code whose message matches; fails with a comparison otherwise. */
export function typedError(Class: ErrorClass, code: string, message = /./): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof ShardloomError, `expected a ShardloomError but received ${String(error)}`);
    assert.deepEqual({ class: error.name, code: error.code }, { class: Class.name, code }, error.message);
    assert.match(error.message, message);
    return true;
  };
}
