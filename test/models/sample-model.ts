/** The sample model: how tests get it, and the form in which the goldens were computed from it. */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { loadPlugins, resolvePlugin } from "../../src/loading/plugins.js";
import { copyAsSafetensors } from "./safetensors-copy.js";

/** Path of the sample model, fetched if need be. Without a network there is none, which only CI may not accept. */
export function sampleModel(context: Mocha.Context): string {
  const script = fileURLToPath(new URL("../../../scripts/fetch-sample-model.mjs", import.meta.url));
  try {
    return execFileSync(process.execPath, [script], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
  } catch (error) {
    if (process.env["CI"] !== undefined) throw error;
    console.warn(`      the sample model cannot be had: ${error instanceof Error ? error.message : String(error)}`);
    return context.skip();
  }
}

/** The weights of a .gguf file as a safetensors directory of bf16, which is what the goldens were computed from. */
export async function roundToBf16(path: string, directory: string): Promise<void> {
  const { modelLoaders } = await loadPlugins([resolvePlugin("@shardloom/gguf")]);
  await copyAsSafetensors(modelLoaders.select(path), path, directory, "bf16");
}
