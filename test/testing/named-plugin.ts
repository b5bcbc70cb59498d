/** A plugin that threads import by name: safetensors under another format. */
import { safetensorsLoader } from "../../src/loading/default-loader.js";
import { PLUGIN_API_VERSION, type Plugin } from "../../src/plugin.js";

export const plugin: Plugin = {
  name: "named-plugin",
  apiVersion: PLUGIN_API_VERSION,
  register: ({ registerModelLoader }) =>
    registerModelLoader({ ...safetensorsLoader, format: "renamed", matches: () => false }),
};
