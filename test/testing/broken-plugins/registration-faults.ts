/** Plugins that register wrongly. */
import type { Plugin } from "../../../src/plugin.js";
import type { BrokenPlugin } from "./broken-plugin.js";
import { separate } from "./fixtures.js";
import { METHOD, NibblesConfig, nibblesPlugin } from "./nibbles.js";

function registeringAnew(): Plugin {
  return {
    name: "broken",
    apiVersion: 1,
    register: ({ registerQuantizationConfig }) => {
      registerQuantizationConfig(METHOD, { create: (request) => new NibblesConfig(request) });
    },
  };
}

function registeringOnce(): Plugin {
  const honest = nibblesPlugin();
  let done = false;
  return {
    ...honest,
    register(context) {
      if (!done) honest.register(context);
      done = true;
    },
  };
}

export const registrationFaults: readonly BrokenPlugin[] = [
  {
    what: "was built for another API",
    plugin: nibblesPlugin({ apiVersion: 2 }),
    fixture: separate,
    caughtBy: "registration: states plugin API version 1",
    message: /expected apiVersion to be 1 but received 2/,
  },
  {
    what: "registers nothing",
    plugin: { name: "broken", apiVersion: 1, register() {} },
    fixture: separate,
    caughtBy: "registration: brings at least one format",
    message: /received none/,
  },
  {
    what: "makes its config anew whenever it registers",
    plugin: registeringAnew(),
    fixture: separate,
    caughtBy: "registration: the same object twice is a no-op",
    message: /made once, not in register\(\).*DUPLICATE_REGISTRATION/,
  },
  {
    what: "is made anew with a config of its own",
    plugin: () => nibblesPlugin(),
    fixture: separate,
    caughtBy: "registration: a fresh object of the plugin is a no-op",
    message: /a fresh object of the plugin registers beside the first one.*DUPLICATE_REGISTRATION/,
  },
  {
    what: "registers once a process",
    plugin: registeringOnce(),
    fixture: separate,
    caughtBy: "registration: every engine of a thread gets the same formats",
    message: /a second engine registers the plugin: expected its formats but received none/,
  },
];
