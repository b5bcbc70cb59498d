/** Which modules a user means by a pattern. */
import { OptionError } from "../core/errors.js";

/**
 * The modules that patterns name, each once, in the order of `modules`; null for no patterns at all. In a pattern `*` stands
 * for any characters and `?` for one. It names a module if it matches its whole name, a dotted prefix of it, or one of
 * its components: `lm_head`, `down_proj`, `model.layers.0`, `*.layers.*.mlp.*`.
 *
 * Throws OptionError `INVALID_OPTION` for a pattern that names no module.
 */
export function matchModules(patterns: readonly string[] | null, modules: readonly string[]): readonly string[] | null {
  if (patterns === null) return null;
  const matched = new Set<string>();
  for (const pattern of patterns) {
    const expression = new RegExp(`^${[...pattern].map(characterPattern).join("")}$`, "s");
    const named = modules.filter((module) => subjectsOf(module).some((subject) => expression.test(subject)));
    if (named.length === 0) throw noModule(pattern, modules);
    for (const module of named) matched.add(module);
  }
  return modules.filter((module) => matched.has(module));
}

/** The parts of a name that a pattern may match. */
function subjectsOf(module: string): readonly string[] {
  const components = module.split(".");
  return [...components, ...components.map((_, i) => components.slice(0, i + 1).join("."))];
}

function characterPattern(character: string): string {
  if (character === "*") return ".*";
  return character === "?" ? "." : character.replace(/[\\^$.|+()[\]{}]/, "\\$&");
}

function noModule(pattern: string, modules: readonly string[]): OptionError {
  const expected = "a pattern that matches a linear module";
  const received = JSON.stringify(pattern);
  return new OptionError(
    "INVALID_OPTION",
    `skip: expected ${expected} of the model (${modules[0]}, ...) but received ${received}`,
    { option: "skip", expected, received },
  );
}
