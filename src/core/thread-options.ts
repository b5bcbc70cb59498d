/** Which options of Node.js the threads that we start begin with. */

/** Options, each with a value, that say what a module is and which one a name means. Threads need them to load the same ones. */
const MODULE_OPTIONS = ["--conditions", "-C", "--import", "--require", "-r", "--loader", "--experimental-loader"];

/**
 * `execArgv` of a worker thread: none, so that it inherits the options of the process, but where that process runs a text
 * (`node --input-type=module -e TEXT`). The option that says what the text is would end a thread that runs a file
 * (ERR_INPUT_TYPE_NOT_ALLOWED), and V8's own options may be inherited but not named; so then it gets those for modules.
 */
export function threadOptions(options: readonly string[] = process.execArgv): { execArgv?: string[] } {
  if (!options.some((option) => /^--(experimental-default|input)-type\b/.test(option))) return {};
  const execArgv: string[] = [];
  for (const [i, option] of options.entries()) {
    const [name = "", ...value] = option.split("=");
    if (!MODULE_OPTIONS.includes(name)) continue;
    execArgv.push(option);
    const next = options[i + 1];
    if (value.length === 0 && next !== undefined) execArgv.push(next);
  }
  return { execArgv };
}
