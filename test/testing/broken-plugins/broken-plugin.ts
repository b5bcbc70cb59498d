/** A plugin that is honest but for one thing, and the check of the conformance kit that is meant for it. */
import type { LinearMethod, Plugin, QuantizationRequest } from "../../../src/plugin.js";
import type { PluginFixture } from "../../../src/testing/index.js";
import type { NibLoader } from "./nib-file.js";
import { NibblesConfig, type NibblesMethod, nibblesPlugin } from "./nibbles.js";

export interface BrokenPlugin {
  /** Completes "a plugin that ...". */
  readonly what: string;
  readonly plugin: Plugin | (() => Plugin);
  /** "file" for the model of `separate` in a file. */
  readonly fixture: PluginFixture | "file";
  /** The first check that fails, without the name of its fixture. */
  readonly caughtBy: string;
  /** What its error says. */
  readonly message: RegExp;
}

type MethodClass = new (config: NibblesConfig) => NibblesMethod;
type ConfigClass = new (request: QuantizationRequest) => NibblesConfig;

export function withMethod(Method: MethodClass): Plugin {
  class Config extends NibblesConfig {
    protected override createMethod(): LinearMethod {
      return new Method(this);
    }
  }
  return withConfig(Config);
}

export function withConfig(Config: ConfigClass): Plugin {
  return nibblesPlugin({ createConfig: (request) => new Config(request) });
}

export function withLoader(loader: NibLoader): Plugin {
  return nibblesPlugin({ loader });
}
