import { fileURLToPath } from "node:url";

/** Absolute path of a file or folder below test/fixtures; the tests run from dist/test. */
export function fixture(path: string): string {
  return fileURLToPath(new URL(`../../test/fixtures/${path}`, import.meta.url));
}
