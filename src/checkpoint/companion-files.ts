/** The files of a model's directory that go with its weights, and stay as they are when the weights are converted. */

const TEXT = /\.(json|jinja|txt|model|tiktoken)$/;
const LICENSE = /^(LICEN[CS]E|NOTICE|USE_POLICY)/i;

/**
 * Of the names in a directory, those of tokenizers, templates, generation settings and licenses: whatever is small, but for
 * config.json and indexes of weights. Hidden files and folders are none.
 */
export function companionFiles(names: readonly string[]): readonly string[] {
  return names.filter((name) => {
    const described = name !== "config.json" && !name.endsWith(".index.json") && !name.startsWith(".");
    return described && (TEXT.test(name) || LICENSE.test(name));
  });
}
