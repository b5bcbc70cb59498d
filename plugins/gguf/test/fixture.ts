import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Path of a file in test/fixtures; this module is compiled to dist/test. */
export function fixturePath(name: string): string {
  return fileURLToPath(new URL(`../../test/fixtures/${name}`, import.meta.url));
}

export function fixtureBytes(name: string): Uint8Array {
  return readFileSync(fixturePath(name));
}
