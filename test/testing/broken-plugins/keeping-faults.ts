/** Plugins that keep what they should not, or write where they should not. */
import type { Checkpoint, JsonObject, QuantizationConfig, QuantizationRequest } from "../../../src/plugin.js";
import { type BrokenPlugin, withConfig } from "./broken-plugin.js";
import { separate } from "./fixtures.js";
import { BLOCK, NibblesConfig } from "./nibbles.js";

class KeepingTheCheckpoint extends NibblesConfig {
  kept: Checkpoint | null = null;

  constructor(request: QuantizationRequest) {
    super(request);
    this.kept = request.checkpoint;
  }
}

class RememberingConfigs extends NibblesConfig {
  static readonly all: QuantizationConfig[] = [];

  constructor(request: QuantizationRequest) {
    super(request);
    RememberingConfigs.all.push(this);
  }
}

class WritingIntoSettings extends NibblesConfig {
  constructor(request: QuantizationRequest) {
    super(request);
    const settings: Record<string, JsonObject[string]> = request.settings;
    settings["blockSize"] = BLOCK;
  }
}

export const keepingFaults: readonly BrokenPlugin[] = [
  {
    what: "keeps the checkpoint",
    plugin: withConfig(KeepingTheCheckpoint),
    fixture: separate,
    caughtBy: "nothing is kept of a checkpoint once it is loaded",
    message: /something still holds the checkpoint of rank 0 and \d+ more/,
  },
  {
    what: "remembers every config",
    plugin: withConfig(RememberingConfigs),
    fixture: separate,
    caughtBy: "nothing is kept of a model once it is dropped",
    message: /something still holds the quantization config of rank 0/,
  },
  {
    what: "writes into its settings",
    plugin: withConfig(WritingIntoSettings),
    fixture: separate,
    caughtBy: "settings, options and layers are left as they are",
    message: /Cannot add property blockSize/,
  },
];
