/** Which modules stay unquantized, by name. */

/**
 * Whether an entry of a skip list means a module: the entry equals one component of the module's name, or a dotted prefix
 * of it, or all of it. Whole components only, so that `proj` does not mean `q_proj`.
 */
export function skips(entries: readonly string[], module: string): boolean {
  const components = module.split(".");
  return entries.some((entry) => {
    return entry !== "" && (entry === module || module.startsWith(`${entry}.`) || components.includes(entry));
  });
}

/**
 * Compares the skip list of a quantized checkpoint with what is quantized in it. The file decides; a difference is worth a
 * word because it may mean that the list was edited, or that it was read in a way that nobody meant. Returns what to
 * warn of, or null.
 *
 * `quantized` and `plain` are names of linear modules. Without a list, bitsandbytes leaves the output head alone, which
 * may be quantized all the same.
 */
export function compareSkips(
  entries: readonly string[] | null,
  quantized: readonly string[],
  plain: readonly string[],
): string | null {
  const listed = entries === null ? [] : quantized.filter((module) => skips(entries, module));
  const unlisted = plain.filter((module) => !skips(entries ?? ["lm_head"], module));
  const parts: string[] = [];
  if (listed.length > 0) parts.push(`in llm_int8_skip_modules but quantized: ${some(listed)}`);
  if (unlisted.length > 0) parts.push(`not in llm_int8_skip_modules and not quantized: ${some(unlisted)}`);
  return parts.length === 0 ? null : `the checkpoint decides which modules are quantized; ${parts.join("; ")}`;
}

const MOST_NAMES = 3;

function some(names: readonly string[]): string {
  const more = names.length - MOST_NAMES;
  return names.slice(0, MOST_NAMES).join(", ") + (more > 0 ? ` and ${more} more` : "");
}
